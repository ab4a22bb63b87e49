// The CPU's ladder, lowest rung first. No torch headers: a rung is plain loops over a Problem.
#pragma once

#include <vector>

#include "problem.h"

struct CpuRung {
  int number;
  const char* name;
  const char* summary;  // one line: the bottleneck that it removes
  void (*launch)(const Problem&);
};

const std::vector<CpuRung>& cpu_rungs();
