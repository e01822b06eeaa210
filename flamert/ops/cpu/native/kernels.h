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
#include "conv_gradient.h"
#include "pointwise.h"
#include "copy.h"
#include "matmul.h"
#include "reduce.h"
#include "pool.h"
#include "pool_gradient.h"
#include "batch_norm.h"
#include "attention.h"
#include "lstm.h"

const int64_t SET(panel) = NR;
const entry SET(kernels)[] = {
    {"gemm", gemm},
    {"pack", pack},
    {"matmul", matmul},
    {"conv", conv},
    {"depthwise", depthwise},
    {"arrange", arrange},
    {"conv_gradient", conv_gradient},
    {"depthwise_gradient", depthwise_gradient},
    {"pointwise", pointwise},
    {"copy", copy},
    {"fill", fill_all},
    {"reduce", reduce},
    {"all_finite", all_finite},
    {"softmax", softmax},
    {"layer_norm", layer_norm},
    {"pool", pool},
    {"pool_gradient", pool_gradient},
    {"moments", moments},
    {"batch_norm_gradient", batch_norm_gradient},
    {"attention", attention},
    {"lstm", lstm},
    {"lstm_gradient", lstm_gradient},
    {"lstm_peepholes", lstm_peepholes},
    {0, 0},
};
