/* Kernels for any processor the compiler targets by default. */
#define SET(name) name##_baseline
#define VL 4
#define MR 6
#include "kernels.h"
