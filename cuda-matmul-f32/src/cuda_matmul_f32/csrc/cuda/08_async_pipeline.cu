// CUDA 8: copies run ahead. While a block computes with one stage of panels, the copies of the
// next three are under way (cp.async), so no thread waits for memory.
//
// Removes: from rung 7, the trip of each value through registers on its way to shared memory, and
//   the wait for it: a load from device memory takes some 600 cycles, a stage's arithmetic about
//   1200 for a quarter of a multiprocessor, and up to three stages may be late before anyone waits.
//   Views of any strides are copied at full width, or transposed, or one by one (panel_copy.cuh).
// Leaves: one barrier of all threads a stage; copying and its addresses, an eighth of the
//   instructions; an eighth more are loads from shared memory; and tiles of 128 x 128 leave most of
//   a GPU idle if C is small, and part of it in the last round of tiles.
// To read: CUDA Programming Guide, "Asynchronous Data Copies".
#include "cuda/async_tile.cuh"
#include "cuda/kernels.h"

namespace {

cudaError_t launch_async_pipeline(const Problem& p, void*, cudaStream_t stream) {
  return launch_async_tile<AsyncTile<4, 2>>(p, 1, nullptr, stream);
}

}  // namespace

const CudaRung async_pipeline_rung = {
    8,       "async_pipeline",     "panels are copied three stages ahead (cp.async)", nullptr,
    nullptr, launch_async_pipeline};
