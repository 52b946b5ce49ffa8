// 1 components in float, sums in double: 128 threads x 8 rows; packed records, tiles of 256 columns, 1 at a time; chains of 64
typedef long long i64;

#ifndef DRED_exp2
#define DRED_exp2
__device__ __forceinline__ float dred_exp2(const float x) {
#ifdef __CUDACC_RTC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

__device__ __forceinline__ double dred_exp2(const double x) {
  const double n = x + 6755399441055744.0, r = x - (n - 6755399441055744.0);
  double p = 4.4558179083360645e-10;
  p = fma(p, r, 7.074194297288521e-09);
  p = fma(p, r, 1.0178057087733941e-07);
  p = fma(p, r, 1.3215432535912375e-06);
  p = fma(p, r, 1.5252733841556773e-05);
  p = fma(p, r, 0.00015403530463724353);
  p = fma(p, r, 0.001333355814640647);
  p = fma(p, r, 0.009618129107587256);
  p = fma(p, r, 0.055504108664821625);
  p = fma(p, r, 0.24022650695910158);
  p = fma(p, r, 0.6931471805599453);
  p = fma(p, r, 1.0);
  const i64 bits = __double_as_longlong(p) + (__double_as_longlong(n) << 52);
  const int high = (int)(__double_as_longlong(x) >> 32);
  const double y = __longlong_as_double(bits);
  return (high & 0x7fffffff) < 0x408ff000 ? y : high <= -0x100000 ? 0.0 : __longlong_as_double(0x7ff0000000000000ll);
}
#endif

__device__ __forceinline__ void dred_join0(double& a0, const double b0) {
  const double t1 = a0 + b0;
  a0 = t1;
}

extern "C" __global__ void __launch_bounds__(128, 4) dred_fold(const float* __restrict__ v0, i64 s0, const float* __restrict__ v1, i64 s1, const float* __restrict__ v2, i64 s2, const float* __restrict__ v3, i64 s3, const i64* __restrict__ items, const i64* __restrict__ intervals, double* __restrict__ partial0, i64 pitch, int first, int splits) {
  // batch; begin and end of its rows; first and last of their intervals
  const i64* const item = items + 5 * blockIdx.x;
  const i64 batch = item[0];
  v0 += batch * s0;
  v1 += batch * s1;
  v2 += batch * s2;
  v3 += batch * s3;
  const float in2 = v3[0];
  const float t3 = -in2;
  const float t4 = 1.442695f * t3;
  const float t5 = fabsf(t4);
  const bool t6 = t5 < __int_as_float(0x7f800000);
  const float t7 = t6 ? t4 : __int_as_float(0x7fffffff);
  __align__(16) __shared__ float4 tile[256];
  partial0 += (i64)blockIdx.y * 1 * pitch + (i64)blockIdx.x * 1024 + threadIdx.x;
  // the records of this thread's rows
  float x0[8];
  float x1[8];
  float x2[8];
  #pragma unroll
  for (int r = 0; r < 8; r++) {
    const i64 i = min(item[1] + threadIdx.x + 128 * r, item[2] - 1);
    const float in8 = v0[i * 3 + 0];
    const float in9 = v0[i * 3 + 1];
    const float in10 = v0[i * 3 + 2];
    x0[r] = in8;
    x1[r] = in9;
    x2[r] = in10;
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
        const float in11 = v1[j * 3 + 0];
        const float in12 = v1[j * 3 + 1];
        const float in13 = v1[j * 3 + 2];
        const float in14 = v2[j * 1 + 0];
        tile[t * 1 + 0] = make_float4(in11, in12, in13, in14);
      }
      __syncthreads();
      #pragma unroll 1
      for (int c0 = 0; c0 < count; c0 += 64) {
        float run0[8];
        float part0[8];
        #pragma unroll
        for (int r = 0; r < 8; r++) {
          run0[r] = 0.0f;
        }
        const auto columns = [&](const int t) {
          const float4 y15 = tile[t * 1 + 0];
          #pragma unroll
          for (int r = 0; r < 8; r++) {
            const float t16 = x0[r] - y15.x;
            const float t17 = t16 * t16;
            const float t18 = x1[r] - y15.y;
            const float t19 = fmaf(t18, t18, t17);
            const float t20 = x2[r] - y15.z;
            const float t21 = fmaf(t20, t20, t19);
            const float t22 = t21 * t7;
            const float t23 = dred_exp2(t22);
            const float t24 = fmaf(y15.w, t23, part0[r]);
            part0[r] = t24;
          }
        };
        if (count - c0 >= 64) {
          #pragma unroll 1
          for (int h = 0; h < 64; h += 8) {
            #pragma unroll
            for (int r = 0; r < 8; r++) {
              part0[r] = 0.0f;
            }
            #pragma unroll 8
            for (int t = h; t < h + 8; t += 1) {
              columns(c0 + t);
            }
            #pragma unroll
            for (int r = 0; r < 8; r++) {
              run0[r] += part0[r];
            }
          }
        } else {
          #pragma unroll 1
          for (int h = c0; h < count; h += 8) {
            #pragma unroll
            for (int r = 0; r < 8; r++) {
              part0[r] = 0.0f;
            }
            #pragma unroll 1
            for (int t = h; t < min(h + 8, count); t += 1) {
              columns(t);
            }
            #pragma unroll
            for (int r = 0; r < 8; r++) {
              run0[r] += part0[r];
            }
          }
        }
        bool fine = true;
        #pragma unroll
        for (int r = 0; r < 8; r++) {
          fine &= (fabsf(run0[r]) < __int_as_float(0x7f800000));
        }
        unsigned bad = 0;
        if (!fine) {
          #pragma unroll
          for (int r = 0; r < 8; r++) {
            if (!((fabsf(run0[r]) < __int_as_float(0x7f800000)))) {
              bad |= 1u << r;
              run0[r] = 0.0f;
            }
          }
        }
        #pragma unroll
        for (int r = 0; r < 8; r++) {
          acc0[r] += (double)run0[r];
        }
        if (bad != 0) {
          #pragma unroll 1
          for (int q = 0; q < 8; q++) {
            if (bad >> q & 1) {
              #pragma unroll 1
              for (int h = c0; h < min(c0 + 64, count); h += 8) {
                const i64 i = min(item[1] + threadIdx.x + 128 * q, item[2] - 1);
                const float in1 = v3[0];
                const float t2 = -in1;
                float again0 = 0.0f;
                #pragma unroll 1
                for (int u = h; u < min(h + 8, min(c0 + 64, count)); u++) {
                  const i64 j = j0 + u;
                  const float in3 = v0[i * 3 + 0];
                  const float in4 = v1[j * 3 + 0];
                  const float t5 = in3 - in4;
                  const float t6 = t5 * t5;
                  const float in7 = v0[i * 3 + 1];
                  const float in8 = v1[j * 3 + 1];
                  const float t9 = in7 - in8;
                  const float t10 = fmaf(t9, t9, t6);
                  const float in11 = v0[i * 3 + 2];
                  const float in12 = v1[j * 3 + 2];
                  const float t13 = in11 - in12;
                  const float t14 = fmaf(t13, t13, t10);
                  const float t15 = t2 * t14;
                  const float t16 = expf(t15);
                  const float in17 = v2[j * 1 + 0];
                  const float t18 = fmaf(t16, in17, again0);
                  again0 = t18;
                }
                #pragma unroll
                for (int r = 0; r < 8; r++) {
                  if (r == q) {
                    dred_join0(acc0[r], again0);
                  }
                }
              }
            }
          }
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

extern "C" __global__ void dred_merge(const i64* __restrict__ items, const double* __restrict__ partial0, i64 pitch, int splits, i64 M, i64 state_pitch, double* __restrict__ state0, int fresh, float* __restrict__ out0) {
  // batch; begin and end of its rows; first and last of their intervals
  const i64* const item = items + 5 * blockIdx.x;
  const i64 batch = item[0];
  partial0 += (i64)blockIdx.x * 1024;
  for (i64 k = blockIdx.y; k < 1; k += gridDim.y) {
    for (int n = threadIdx.x; n < 1024 && item[1] + n < item[2]; n += 128) {
      const i64 row = batch * M + item[1] + n;
      double a0 = fresh ? 0.0 : state0[k * state_pitch + row];
      for (int s = 0; s < splits; s++) {
        const double b0 = partial0[((i64)s * 1 + k) * pitch + n];
        dred_join0(a0, b0);
      }
      if (out0) out0[row * 1 + k] = (float)a0; else state0[k * state_pitch + row] = a0;
    }
  }
}
