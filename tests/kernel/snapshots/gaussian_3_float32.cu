// 1 components in float, sums in double: 128 threads x 8 rows; packed records, tiles of 256 columns, 1 at a time; chains of 16
typedef long long i64;

__device__ __forceinline__ void dred_join0(double& a0, const double b0) {
  const double t1 = a0 + b0;
  a0 = t1;
}

extern "C" __global__ void __launch_bounds__(128, 2) dred_fold(const float* __restrict__ v0, i64 s0, const float* __restrict__ v1, i64 s1, const float* __restrict__ v2, i64 s2, const float* __restrict__ v3, i64 s3, const i64* __restrict__ items, const i64* __restrict__ intervals, double* __restrict__ partial0, i64 pitch, int first, int splits) {
  // batch; begin and end of its rows; first and last of their intervals
  const i64* const item = items + 5 * blockIdx.x;
  const i64 batch = item[0];
  v0 += batch * s0;
  v1 += batch * s1;
  v2 += batch * s2;
  v3 += batch * s3;
  const float in2 = v3[0];
  const float t3 = -in2;
  __align__(16) __shared__ float4 tile[256];
  partial0 += (i64)blockIdx.y * 1 * pitch + (i64)blockIdx.x * 1024 + threadIdx.x;
  // the records of this thread's rows
  float x0[8];
  float x1[8];
  float x2[8];
  #pragma unroll
  for (int r = 0; r < 8; r++) {
    const i64 i = min(item[1] + threadIdx.x + 128 * r, item[2] - 1);
    const float in4 = v0[i * 3 + 0];
    const float in5 = v0[i * 3 + 1];
    const float in6 = v0[i * 3 + 2];
    x0[r] = in4;
    x1[r] = in5;
    x2[r] = in6;
  }
  // the state of this thread's rows
  double acc0[8];
  #pragma unroll
  for (int r = 0; r < 8; r++) {
    acc0[r] = 0.0;
  }
  // tiles of all intervals, and this split's share of them
  i64 tiles = 0, seen = 0;
  for (i64 q = item[3]; q < item[4]; q++) {
    tiles += (intervals[2 * q + 1] - intervals[2 * q] + 255) / 256;
  }
  const i64 share = (tiles + splits - 1) / splits;
  const i64 from = (first + (i64)blockIdx.y) * share, to = from + share;
  #pragma unroll 1
  for (i64 q = item[3]; q < item[4]; q++) {
    const i64 begin = intervals[2 * q], end = intervals[2 * q + 1];
    const i64 stop = min(end, begin + (to - seen) * 256);
    #pragma unroll 1
    for (i64 j0 = begin + max(from - seen, (i64)0) * 256; j0 < stop; j0 += 256) {
      const int count = (int)min((i64)256, end - j0);
      __syncthreads();
      for (int t = threadIdx.x; t < 256; t += 128) {
        const i64 j = min(j0 + t, end - 1);
        const float in7 = v1[j * 3 + 0];
        const float in8 = v1[j * 3 + 1];
        const float in9 = v1[j * 3 + 2];
        const float in10 = v2[j * 1 + 0];
        tile[t * 1 + 0] = make_float4(in7, in8, in9, in10);
      }
      __syncthreads();
      #pragma unroll 1
      for (int c0 = 0; c0 < count; c0 += 16) {
        float run0[8];
        #pragma unroll
        for (int r = 0; r < 8; r++) {
          run0[r] = 0.0f;
        }
        const auto columns = [&](const int t) {
          const float4 y11 = tile[t * 1 + 0];
          #pragma unroll
          for (int r = 0; r < 8; r++) {
            const float t12 = x0[r] - y11.x;
            const float t13 = t12 * t12;
            const float t14 = x1[r] - y11.y;
            const float t15 = fmaf(t14, t14, t13);
            const float t16 = x2[r] - y11.z;
            const float t17 = fmaf(t16, t16, t15);
            const float t18 = t3 * t17;
            const float t19 = expf(t18);
            const float t20 = fmaf(t19, y11.w, run0[r]);
            run0[r] = t20;
          }
        };
        if (count - c0 >= 16) {
          #pragma unroll 4
          for (int t = 0; t < 16; t += 1) {
            columns(c0 + t);
          }
        } else {
          #pragma unroll 1
          for (int t = c0; t < count; t += 1) {
            columns(t);
          }
        }
        #pragma unroll
        for (int r = 0; r < 8; r++) {
          dred_join0(acc0[r], run0[r]);
        }
      }
    }
    seen += (intervals[2 * q + 1] - intervals[2 * q] + 255) / 256;
  }
  #pragma unroll
  for (int r = 0; r < 8; r++) {
    partial0[(i64)(0) * pitch + 128 * r] = acc0[r];
  }
}

extern "C" __global__ void dred_merge(const i64* __restrict__ items, const double* __restrict__ partial0, i64 pitch, int splits, i64 M, i64 state_pitch, double* __restrict__ state0) {
  // batch; begin and end of its rows; first and last of their intervals
  const i64* const item = items + 5 * blockIdx.x;
  const i64 batch = item[0];
  partial0 += (i64)blockIdx.x * 1024;
  for (i64 k = blockIdx.y; k < 1; k += gridDim.y) {
    for (int n = threadIdx.x; n < 1024 && item[1] + n < item[2]; n += 128) {
      const i64 row = batch * M + item[1] + n;
      double a0 = state0[k * state_pitch + row];
      for (int s = 0; s < splits; s++) {
        const double b0 = partial0[((i64)s * 1 + k) * pitch + n];
        dred_join0(a0, b0);
      }
      state0[k * state_pitch + row] = a0;
    }
  }
}
