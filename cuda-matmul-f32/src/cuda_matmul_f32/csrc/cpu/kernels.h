// The CPU's ladder, lowest rung first. No torch headers: a rung is plain loops over a Problem.
#pragma once

#include <vector>

#include "problem.h"
#include "registry.h"

using CpuRung = Rung<void (*)(const Problem&)>;

const std::vector<CpuRung>& cpu_rungs();
