// A matrix product's arithmetic with everything else left out: no loads, no stores, no barriers.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>

#include "cuda/ceiling.h"
#include "cuda/outer_product.cuh"

namespace {

constexpr int kRows = 16, kCols = 8;  // a thread's tile, as in rung 9: 128 independent sums
constexpr int kThreads = 256;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Below 1 in size, and unlike those of other threads: how many bits flip decides how much power an
// FMA takes, and power how fast the clock may run. All zeros would give a limit that no product of
// real matrices can reach.
__device__ float operand(unsigned i) {
  unsigned x = (blockIdx.x * kThreads + threadIdx.x) * 2654435761u + i * 40503u;
  x ^= x >> 15;
  x *= 2246822519u;
  return static_cast<int>(x) * 0x1p-31f;
}

__global__ void __launch_bounds__(kThreads, 1) ffma_kernel(int steps, float* sink) {
  float a[kRows], b[kCols], sum[kRows][kCols] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) a[i] = operand(i);
#pragma unroll
  for (int j = 0; j < kCols; ++j) b[j] = operand(kRows + j);
  // Sums stay below `steps` in size: finite. Not unrolled: with one copy of the loop's body the
  // compiler finds registers that never wait for a bank (outer_product.cuh).
#pragma unroll 1
  for (int step = 0; step < steps; ++step) outer_product(sum, a, b);
  // Without a use of the sums the compiler would drop them. No sum is infinite: nothing is stored.
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) total += sum[i][j];
  }
  if (isinf(total)) *sink = total;
}

// Seconds that `launches` of the kernel take.
double seconds(int blocks, int steps, int launches) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&stop));
  check(cudaEventRecord(start));
  for (int i = 0; i < launches; ++i) ffma_kernel<<<blocks, kThreads>>>(steps, nullptr);
  check(cudaGetLastError());
  check(cudaEventRecord(stop));
  check(cudaEventSynchronize(stop));
  float milliseconds = 0.0f;
  check(cudaEventElapsedTime(&milliseconds, start, stop));
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(stop));
  return milliseconds * 1e-3;
}

}  // namespace

double ffma_ceiling(int device) {
  int before = 0, processors = 0, resident = 0;
  check(cudaGetDevice(&before));
  check(cudaSetDevice(device));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, ffma_kernel, kThreads, 0));
  const int blocks = processors * resident;  // all at once: no processor waits for a last wave

  constexpr int kSteps = 1 << 16;  // some milliseconds
  const double once = seconds(blocks, kSteps, 1);
  const int launches = std::max(1, static_cast<int>(0.1 / once));
  seconds(blocks, kSteps, launches);  // until clock and power have settled
  const double elapsed = seconds(blocks, kSteps, launches);
  check(cudaSetDevice(before));
  const double ffmas = 1.0 * launches * blocks * kThreads * kSteps * kRows * kCols;
  return 2.0 * ffmas / elapsed * 1e-12;
}
