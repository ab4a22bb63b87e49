#include "cuda/choose.h"

// The highest rung that this GPU runs. The first one runs on every GPU.
const CudaRung& choose_rung(const Problem&, int device) {
  const std::vector<CudaRung>& rungs = cuda_rungs();
  auto rung = rungs.rbegin();
  while (missing_on(device, *rung) != nullptr) ++rung;
  return *rung;
}
