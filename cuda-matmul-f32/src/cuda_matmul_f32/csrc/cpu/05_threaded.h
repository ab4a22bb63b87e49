// CPU 5: rung 4 on all cores.
//
// Removes: the idle cores. C is cut into as many rectangles as there are threads, and each thread
//   runs rung 4 on its own; of a batch, each takes whole products first. They meet once, at the
//   end: no thread waits for another in between (which costs most on a laptop that does other work
//   too), and no two write the same element, so the result has the same bits for any number of
//   threads.
// Leaves: panels packed once per thread that needs them instead of once, which tells with many
//   cores; no parallel work along K (a small C with a long K keeps few cores busy); and a matrix
//   with a single row or column, padded to a whole register tile.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/04_register_blocked.h"
#include "problem.h"

// How many parts C's rows and columns are cut into, and each part's size in whole register tiles.
struct Grid {
  int64_t parts_m, parts_n;
  int64_t rows, cols;
};

// The grid of at most `threads` parts whose largest part takes least time. A packed element costs a
// thread about as much as kPackCost multiply-adds: only the order of magnitude matters.
inline Grid best_grid(const Problem& p, int64_t threads) {
  constexpr int64_t kPackCost = 32;
  Grid best{};
  int64_t best_cost = INT64_MAX;
  for (int64_t want_m = 1; want_m <= threads; ++want_m) {
    const int64_t rows = round_up(ceil_div(p.M, want_m), kRows);
    const int64_t cols = round_up(ceil_div(p.N, threads / want_m), kCols);
    const int64_t cost = rows * cols + kPackCost * (rows + cols);
    if (cost < best_cost) {
      best_cost = cost;
      best = {ceil_div(p.M, rows), ceil_div(p.N, cols), rows, cols};
    }
  }
  return best;
}

inline void threaded(const Problem& p) {
  // Below this a thread's share (some microseconds) is not worth waking it for.
  constexpr double kLeastWork = 1 << 18;
  const double work = static_cast<double>(p.batch) * p.M * p.N * std::max<int64_t>(p.K, 1);
  const double threads = std::clamp(work / kLeastWork, 1.0, 1.0 * at::get_num_threads());

  // With a product or more for each thread, products stay whole.
  const Grid grid = best_grid(p, ceil_div(static_cast<int64_t>(threads), p.batch));
  const int64_t parts = grid.parts_m * grid.parts_n;
  const int64_t share = ceil_div(p.batch * parts, static_cast<int64_t>(threads));
  at::parallel_for(0, p.batch * parts, share, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t row = part % parts / grid.parts_n * grid.rows;
      const int64_t col = part % parts % grid.parts_n * grid.cols;
      Problem mine = p.at(part / parts);
      mine.M = std::min(grid.rows, p.M - row);
      mine.N = std::min(grid.cols, p.N - col);
      mine.a.data = &mine.a(row, 0);
      mine.b.data = &mine.b(0, col);
      mine.c += row * p.c_stride + col;
      register_blocked(mine);
    }
  });
}
