// One matrix product as every kernel sees it: C = A B, all FP32, with C row-major.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

// A read-only matrix with any strides, so transposed, sliced and expanded views need no copy.
// Offsets are 64-bit: a matrix may hold more than 2^31 elements.
struct Matrix {
  const float* data;
  int64_t row_stride;  // in elements, from one row to the next
  int64_t col_stride;

  HOST_DEVICE const float& operator()(int64_t row, int64_t col) const {
    return data[row * row_stride + col * col_stride];
  }
};

struct Problem {
  int64_t M, N, K;
  Matrix a;  // [M, K]
  Matrix b;  // [K, N]
  float* c;  // [M, N], uninitialised on entry: a kernel writes every element, also when K is 0
  int64_t c_stride;  // in elements, from one row of C to the next
};
