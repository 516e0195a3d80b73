// The time of a measured region, for whatever times kernels.
#pragma once

#include <time.h>

#include "threads.hpp"

namespace headrace {

// Seconds since construction. With one thread the calling thread's own CPU time: what a neighbour took of the core is not
// the kernel's doing, and a preempted product would look slow. With more threads the clock on the wall.
class Stopwatch {
  public:
    explicit Stopwatch(const ThreadPool& pool) : clock_(pool.threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC), start_(now()) {}
    double seconds() const { return now() - start_; }

  private:
    double now() const {
        timespec time{};
        clock_gettime(clock_, &time);
        return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    }
    clockid_t clock_;
    double start_;
};

}  // namespace headrace
