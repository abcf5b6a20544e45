// Fixed work on every SM that the launching stream may use, for `colocate doctor`: is another process concurrent?
//
// Work, not waiting: a loop that waits for the clock ends on time even while another process has the GPU, and would call
// time-slicing concurrency. Each block does `rounds` rounds of 64 dependent fused multiply-adds and records its SM and
// its begin and end on the device's clock (%globaltimer, ns), which every process reads alike.
//
// Launch: one block per SM, 256 threads; few enough that two blocks on one SM hardly slow each other down.

extern "C" __global__ void burn(unsigned int* __restrict__ smid_of_block, unsigned long long* __restrict__ begin_of_block,
                                unsigned long long* __restrict__ end_of_block, float* __restrict__ sink,
                                unsigned int rounds) {
  unsigned long long begin, end;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  float x = 1.0f + (threadIdx.x + (begin & 1)) * 1e-3f;  // depends on `begin`, so that no work moves before it
  for (unsigned int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 64; ++i) x = __fmaf_rn(x, 0.999999f, 1e-6f);
  }
  // Never true: x stays near 1. The compiler cannot know it, so the work is not optimised away.
  if (x < -1.0f) sink[0] = x;
  __syncthreads();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end) : "f"(x));  // depends on x, so that it is not read early
  if (threadIdx.x == 0) {
    unsigned int sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    smid_of_block[blockIdx.x] = sm;
    begin_of_block[blockIdx.x] = begin;
    end_of_block[blockIdx.x] = end;
  }
}
