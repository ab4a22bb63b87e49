// The GPU's ladder, lowest rung first. No torch headers: kernels.cu compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "problem.h"

struct CudaRung {
  int number;
  const char* name;
  const char* summary;  // one line: the bottleneck that it removes

  // What a GPU of this compute capability (90 is 9.0) lacks to run it, as in "needs compute
  // capability 9.0 (TMA)", or nullptr. Without a function it runs on every GPU.
  const char* (*missing)(int compute_capability);
  // The size of the scratch memory on the GPU that launch() is given; without a function, none.
  size_t (*workspace_bytes)(const Problem&);
  // Estimated cycles on a GPU with that many multiprocessors, for kernel="auto" (choose.h); without
  // a function, "auto" leaves the rung aside.
  double (*cycles)(const Problem&, int processors);
  // Launches on the current device; returns the launch's error, not the kernel's.
  cudaError_t (*launch)(const Problem&, void* workspace, cudaStream_t);
};

const std::vector<CudaRung>& cuda_rungs();

// The rungs that have a source file of their own, so that they compile side by side.
extern const CudaRung async_pipeline_rung;
extern const CudaRung hopper_rung;
extern const CudaRung split_k_rung;
extern const CudaRung skinny_rung;

// What GPU `device` lacks to run the rung, or nullptr.
const char* missing_on(int device, const CudaRung& rung);
