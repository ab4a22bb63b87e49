// kernel="auto": which rung computes a problem on a GPU. Each rung estimates its own cycles; two
// numbers for each, fitted to measurements (tuned.h), turn them into time; the least time wins.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "problem.h"

// Never one that missing_on(device, ...) objects to.
const CudaRung& choose_rung(const Problem& p, int device);

// The cycles that each rung offered on `device` estimates for a problem, by name: what
// `benchmark.py --tune` fits measured times to.
std::vector<std::pair<std::string, double>> estimated_cycles(const Problem& p, int device);
