#include "cuda/01_naive.cuh"
#include "cuda/02_coalesced.cuh"
#include "cuda/03_shared_tile.cuh"
#include "cuda/04_thread_column.cuh"
#include "cuda/05_register_tile.cuh"
#include "cuda/06_vectorised.cuh"
#include "cuda/07_warp_tile.cuh"
#include "cuda/kernels.h"

const std::vector<CudaRung>& cuda_rungs() {
  static const std::vector<CudaRung> rungs = {
      {1, "naive", "one thread per output, a warp walks down a column", nullptr, nullptr, nullptr,
       launch_naive},
      {2, "coalesced", "a warp walks along a row: its loads and stores merge", nullptr, nullptr,
       nullptr, launch_coalesced},
      {3, "shared_tile", "a block loads each value once into shared memory", nullptr, nullptr,
       nullptr, launch_shared_tile},
      {4, "thread_column", "a thread computes 8 outputs below each other", nullptr, nullptr,
       nullptr, launch_thread_column},
      {5, "register_tile", "a thread computes 8 x 8 outputs from values in registers", nullptr,
       nullptr, nullptr, launch_register_tile},
      {6, "vectorised", "global loads of 16 bytes", nullptr, nullptr, nullptr, launch_vectorised},
      {7, "warp_tile", "a warp's threads share what they read", nullptr, nullptr, nullptr,
       launch_warp_tile},
      async_pipeline_rung,
      hopper_rung,
      split_k_rung,
      skinny_rung,
  };
  return rungs;
}

const char* missing_on(int device, const CudaRung& rung) {
  if (rung.missing == nullptr) return nullptr;
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return rung.missing(10 * major + minor);
}
