// Matrix products as every kernel sees them: C = A B, all FP32, with C row-major; one or a batch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

// How many parts of size b cover a.
HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// A read-only matrix with any strides, so transposed, sliced and expanded views need no copy.
// Offsets are 64-bit: a matrix may hold more than 2^31 elements.
struct Matrix {
  const float* data;
  int64_t row_stride;  // in elements, from one row to the next
  int64_t col_stride;
  int64_t batch_stride;  // from one product's matrix to the next one's; 0: all share this one

  HOST_DEVICE const float& operator()(int64_t row, int64_t col) const {
    return data[row * row_stride + col * col_stride];
  }
};

struct Problem {
  int64_t batch;  // how many products of this shape; at least 1
  int64_t M, N, K;
  Matrix a;  // [batch, M, K]
  Matrix b;  // [batch, K, N]
  float* c;  // [batch, M, N], uninitialised on entry: a kernel writes every element, also if K is 0
  int64_t c_stride;  // in elements, from one row of C to the next; columns are adjacent
  int64_t c_batch_stride;

  // The i-th product alone.
  HOST_DEVICE Problem at(int64_t i) const {
    Problem one = *this;
    one.batch = 1;
    one.a.data += i * a.batch_stride;
    one.b.data += i * b.batch_stride;
    one.c += i * c_batch_stride;
    return one;
  }
};
