// kernel="auto": which rung computes a problem on a GPU.
#pragma once

#include "cuda/kernels.h"
#include "problem.h"

// Never one that missing_on(device, ...) objects to.
const CudaRung& choose_rung(const Problem& p, int device);
