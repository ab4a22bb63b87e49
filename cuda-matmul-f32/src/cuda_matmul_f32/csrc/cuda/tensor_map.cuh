// What Hopper's copy engine (TMA) must know of a matrix whose lines are adjacent: sizes, strides,
// and the box of lines and steps of K that it copies at a time. What lies past an edge becomes
// zero.
#pragma once

#include <cudaTypedefs.h>

#include <cstdint>

#include "cuda/panel_copy.cuh"

inline cudaError_t describe(CUtensorMap* map, const Lines& m, int64_t lines, int64_t K,
                            int64_t batch, int box_lines, int box_depth) {
  // From the driver by way of the runtime, so that nothing is linked against libcuda.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &found);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encode == nullptr) return cudaErrorInsufficientDriver;
  const auto bytes = [](int64_t floats) { return static_cast<cuuint64_t>(floats) * 4; };
  const bool shared = m.batch_stride == 0;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(lines), static_cast<cuuint64_t>(K),
                               static_cast<cuuint64_t>(shared ? 1 : batch)};
  const cuuint64_t strides[2] = {bytes(m.k_stride), shared ? 16 : bytes(m.batch_stride)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(box_lines), static_cast<cuuint32_t>(box_depth),
                             1};
  const cuuint32_t every[3] = {1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, const_cast<float*>(m.first), sizes, strides,
             box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
