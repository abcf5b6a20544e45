// On which SMs does a stream really run? For `colocate doctor` and the proofs of device/cuda/proof.
//
// Every block writes the number of its SM (%smid) and when it began and ended on the device's clock (%globaltimer, ns;
// the same clock in every process), and stays for at least `spin_ns`, so that blocks launched together spread over all
// SMs there are instead of following each other on the first ones. Launch with 1,024 threads: two blocks fill an SM.
//
// It waits for a clock and does no work, so it tells where blocks run and not whether two processes run at once: a
// block that was suspended ends on time all the same. That is what burn.cu is for.

extern "C" __global__ void smid_probe(unsigned int* __restrict__ smid_of_block,
                                      unsigned long long* __restrict__ begin_of_block,
                                      unsigned long long* __restrict__ end_of_block, unsigned long long spin_ns) {
  if (threadIdx.x != 0) return;
  unsigned int sm;
  unsigned long long begin, now;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    __nanosleep(200);
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < spin_ns);
  smid_of_block[blockIdx.x] = sm;
  begin_of_block[blockIdx.x] = begin;
  end_of_block[blockIdx.x] = now;
}
