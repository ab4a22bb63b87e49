// The launcher that all rungs share, so that a rung's file shows only its kernel.
#pragma once

#include <cuda_runtime.h>

#include "problem.h"

// Multiprocessors of the current device.
inline int processor_count() {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return processors;
}

// Bytes of shared memory that a block may have on the current device: 99 KiB on compute capability
// 8.6 and 8.9, 163 on 8.0, 227 on 9.0.
inline int shared_memory_limit() {
  int device = 0, bytes = 48 << 10;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// The tile of C, rows x cols outputs, that one block of threads computes.
struct Tile {
  int rows;
  int cols;
  int threads;
};

// The number of tiles that cover C, product after product; false if no grid is that large.
// gridDim.x may be 2^31 - 1, while gridDim.y and z end at 65535, which is fewer than the tiles of a
// tall matrix: all grids here are one-dimensional.
inline bool block_count(const Problem& p, int rows, int cols, int64_t* blocks) {
  const int64_t tiles_m = ceil_div(p.M, rows);
  const int64_t tiles_n = ceil_div(p.N, cols);
  if (tiles_m > INT32_MAX / tiles_n || p.batch > INT32_MAX / (tiles_m * tiles_n)) return false;
  *blocks = p.batch * tiles_m * tiles_n;
  return true;
}

// One block per tile of C, row of tiles after row of tiles and product after product.
template <class... More>
cudaError_t launch_tiles(void (*kernel)(Problem, More...), Tile tile, const Problem& p,
                         cudaStream_t stream, More... more) {
  int64_t blocks = 0;
  if (!block_count(p, tile.rows, tile.cols, &blocks)) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), tile.threads, 0, stream>>>(p, more...);
  return cudaGetLastError();
}

// Rungs 9 to 11 are for products so short that launching counts, and may take two kernels. From
// compute capability 9.0 on each is made ready while the one before it still runs, whether of the
// same product or of the last one, and waits on the GPU before it touches memory.
// To read: CUDA Programming Guide, "Programmatic Dependent Launch".
//
// Called when a block has only its results left to write. Any earlier, blocks of the next kernel
// would crowd on the multiprocessors that are free first.
__device__ __forceinline__ void let_next_kernel_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Returns once the kernel before has ended and what it wrote can be read. Before it, only what no
// kernel writes may be read, and nothing be written: the kernel before may still read it.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes = 0;
};

// Launches a kernel that makes the two calls above: every thread waits before all else. (In code
// for an older GPU nothing would wait; _build.py compiles for each GPU that it sees.)
template <class... Parameters, class... Arguments>
cudaError_t launch_behind(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                          Arguments... arguments) {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// A tile's place: which product of the batch, its first row and its first column.
struct Origin {
  int64_t product;
  int64_t row;
  int64_t col;
};

template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p, int64_t index) {
  const int64_t tiles_m = ceil_div(p.M, kRows);
  const int64_t tiles_n = ceil_div(p.N, kCols);
  const int64_t tile = index % (tiles_m * tiles_n);
  return {index / (tiles_m * tiles_n), tile / tiles_n * kRows, tile % tiles_n * kCols};
}

// This block's tile.
template <int kRows, int kCols>
__device__ __forceinline__ Origin tile_origin(const Problem& p) {
  return tile_origin<kRows, kCols>(p, blockIdx.x);
}
