/* All kernels, for one instruction set: included by kernels_*.c, which set SET(name), VL and MR. */
#include <math.h>
#include <string.h>

#include "native.h"
#include "threads.h"
#include "vmath.h"
#include "activation.h"
#include "gemm.h"
#include "conv.h"
#include "depthwise.h"
#include "pointwise.h"
#include "copy.h"
#include "reduce.h"
#include "pool.h"
#include "attention.h"

const int64_t SET(panel) = NR;
const entry SET(kernels)[] = {
    {"gemm", gemm},
    {"pack", pack},
    {"conv", conv},
    {"depthwise", depthwise},
    {"pointwise", pointwise},
    {"copy", copy},
    {"fill", fill_all},
    {"reduce", reduce},
    {"softmax", softmax},
    {"layer_norm", layer_norm},
    {"pool", pool},
    {"attention", attention},
    {0, 0},
};
