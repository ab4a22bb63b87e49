#include "cpu/kernels.h"

#include "cpu/01_naive.h"
#include "cpu/02_reordered.h"
#include "cpu/03_cache_tiled.h"
#include "cpu/04_register_blocked.h"
#include "cpu/05_threaded.h"
#include "cpu/06_thin.h"

namespace {

// A batch for the rungs that compute one product: one after the other.
template <void (*kProduct)(const Problem&)>
void each(const Problem& p) {
  for (int64_t i = 0; i < p.batch; ++i) kProduct(p.at(i));
}

}  // namespace

const std::vector<CpuRung>& cpu_rungs() {
  static const std::vector<CpuRung> rungs = {
      {1, "naive", "one dot product per output, down B's columns", each<naive>},
      {2, "reordered", "loops i, k, j: along rows, vectorised", each<reordered>},
      {3, "cache_tiled", "a tile of B stays in cache for all rows of A", each<cache_tiled>},
      {4, "register_blocked", "packed panels, a tile of C stays in registers",
       each<register_blocked>},
      {5, "threaded", "the same on all cores", threaded},
      {6, "thin", "few rows or columns: without packing, read once", thin},
  };
  return rungs;
}
