// CUDA 6: rung 5 with global loads of 16 bytes a thread. The loader is all that differs.
//
// Removes: three of four load instructions with their addresses and edge tests. A panel of 128 x 16
//   takes 2 loads a thread instead of 8. A row-major A is read along K, so its vector becomes four
//   values in four rows of the panel; the padding spreads them over the banks, two to each.
// Leaves: a warp of 2 x 16 threads still reads 16 different vectors of B for 2 of A, six turns of
//   shared memory a step where four would do; and everybody waits while a panel is loaded.
#pragma once

#include <type_traits>

#include "cuda/05_register_tile.cuh"

template <class LoaderA, class LoaderB>
__global__ void __launch_bounds__(kRegisterTile.threads, 2) vectorised_kernel(const Problem p) {
  register_tile<LoaderA, LoaderB>(p);
}

inline cudaError_t launch_vectorised(const Problem& p, void*, cudaStream_t stream) {
  return with_loaders(p, [&](auto* a, auto* b) {
    const auto kernel =
        vectorised_kernel<std::remove_pointer_t<decltype(a)>, std::remove_pointer_t<decltype(b)>>;
    return launch_tiles(kernel, kRegisterTile, p, stream);
  });
}
