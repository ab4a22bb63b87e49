// What the rungs' estimates of their own cost have in common. Only the order between rungs matters:
// how far an estimate is off is fitted to measurements (tuned.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

constexpr double kFmasPerCycle = 128;  // of a multiprocessor: 4 quarters of 32 lanes
// Its share of device memory's bandwidth: an H100 moves 1700 bytes a cycle, other GPUs are of the
// same order.
constexpr double kBytesPerCycle = 13;

// Cycles that it takes to read A and B and to write C once, from and to device memory.
inline double memory_cycles(const Problem& p, int processors) {
  const double a = 1.0 * (p.a.batch_stride ? p.batch : 1) * p.M * p.K;
  const double b = 1.0 * (p.b.batch_stride ? p.batch : 1) * p.K * p.N;
  return 4.0 * (a + b + 1.0 * p.batch * p.M * p.N) / (kBytesPerCycle * processors);
}
