// The GPU's ladder, lowest rung first. No torch headers: kernels.cu compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "problem.h"
#include "registry.h"

// Launches on the current device; returns the launch's error, not the kernel's.
using CudaRung = Rung<cudaError_t (*)(const Problem&, cudaStream_t)>;

const std::vector<CudaRung>& cuda_rungs();
