#include "cuda/choose.h"

#include <cmath>
#include <cstring>

#include "cuda/shape_cache.h"
#include "cuda/tuned.h"

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

// The rungs that "auto" chooses from. Rung 8 has no requirements, so there is always one.
std::vector<const CudaRung*> candidates(int device) {
  std::vector<const CudaRung*> found;
  for (const CudaRung& rung : cuda_rungs()) {
    if (rung.cycles != nullptr && missing_on(device, rung) == nullptr) found.push_back(&rung);
  }
  return found;
}

// The fit for GPUs of this kind; for a kind that nobody has measured, the first one. The rungs'
// estimates count multiprocessors, so the order between rungs carries over.
const Tuned& tuned_for(int device) {
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                         attribute(cudaDevAttrComputeCapabilityMinor, device);
  for (const Tuned& tuned : kTuned) {
    if (tuned.compute_capability == capability) return tuned;
  }
  return kTuned[0];
}

double microseconds(const Tuned& tuned, const CudaRung& rung, double cycles) {
  for (const TunedRung& fit : tuned.rungs) {
    if (std::strcmp(fit.name, rung.name) == 0) return fit.launch_us + fit.us_per_cycle * cycles;
  }
  return HUGE_VAL;
}

}  // namespace

std::vector<std::pair<std::string, double>> estimated_cycles(const Problem& p, int device) {
  const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
  std::vector<std::pair<std::string, double>> estimates;
  for (const CudaRung* rung : candidates(device)) {
    estimates.emplace_back(rung->name, rung->cycles(p, processors));
  }
  return estimates;
}

const CudaRung& choose_rung(const Problem& p, int device) {
  static thread_local ShapeCache<const CudaRung*> cache;
  return *cache.get(p, device, [&] {
    const Tuned& tuned = tuned_for(device);
    const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
    const CudaRung* best = &async_pipeline_rung;
    double least = HUGE_VAL;
    for (const CudaRung* rung : candidates(device)) {
      const double time = microseconds(tuned, *rung, rung->cycles(p, processors));
      if (time < least) {
        least = time;
        best = rung;
      }
    }
    return best;
  });
}
