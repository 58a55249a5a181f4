//! A frozen weight in blocks of few bits, multiplied without ever being whole in f32.
//!
//! Training over a quantised base (QLoRA) needs `x · wᵀ` forward and `dy · w` backward. Both go through the tiles of
//! [`product`](super::product), which pack the second operand panel by panel; here a panel is unpacked on the way, 32
//! values at a time, so a thread holds one panel of f32 at most. The results are those of the unpacked matrix, to the bit.
//!
//! Formats: NF4 of Dettmers et al. 2023 (arXiv 2305.14314, appendix E) in blocks of 64 values with an f32 scale each, as
//! bitsandbytes has it without double quantisation (first value in the high half of a byte); ggml's Q8_0 and Q4_K.

use std::cell::RefCell;

use candle_core::{Result, Tensor, bail};
use half::f16;
use rayon::prelude::*;

use super::{
    Operand, Precision, add_rows,
    product::{Columns, product},
    tile::{self, Kernel, Line, PANEL},
};
use crate::host::{read, tensor};

/// How a [`QuantizedWeight`] is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 4 bits a value, 16 values placed as a normal distribution has them; 64 share a scale. 4.5 bits in all.
    Nf4,
    /// 8 bits a value, 32 share a scale. 8.5 bits in all.
    Q8_0,
    /// 4 bits a value, 32 share a 6-bit scale and minimum, 256 those of the scales. 4.5 bits in all.
    Q4K,
}

/// The values of NF4's codes (bitsandbytes, `create_normal_map`).
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values of NF4 that share a scale.
const NF4_BLOCK: usize = 64;

/// Values that are unpacked at once: a block of Q8_0, a part of the others'.
const GROUP: usize = 32;

impl BlockFormat {
    /// Values and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Nf4 => (NF4_BLOCK, NF4_BLOCK / 2),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
        }
    }
}

/// A matrix `[O, I]` in blocks along its rows.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    format: BlockFormat,
    out: usize,
    inner: usize,
    /// Rows one after another, each of whole bytes.
    bytes: Vec<u8>,
    /// NF4 alone: the blocks' largest magnitudes, row after row; the last block of a row may be shorter.
    absmax: Vec<f32>,
}

thread_local! {
    /// One unpacked panel.
    static PANEL_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl QuantizedWeight {
    /// NF4 of a matrix whose rows `fill(first_row, rows)` writes; called from several threads, few rows at a time.
    ///
    /// **Errors**: the first one of `fill`.
    pub fn nf4<E: Send>(
        (out, inner): (usize, usize),
        fill: impl Fn(usize, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Self, E> {
        const ROWS: usize = 16;
        let (row_bytes, row_blocks) = (inner.div_ceil(2), inner.div_ceil(NF4_BLOCK));
        let (mut bytes, mut absmax) = (vec![0u8; out * row_bytes], vec![0f32; out * row_blocks]);
        let chunks =
            bytes.par_chunks_mut((ROWS * row_bytes).max(1)).zip(absmax.par_chunks_mut((ROWS * row_blocks).max(1)));
        chunks.enumerate().try_for_each_init(Vec::new, |rows, (chunk, (bytes, absmax))| {
            let count = ROWS.min(out - chunk * ROWS);
            rows.resize(count * inner, 0.0);
            fill(chunk * ROWS, rows)?;
            let parts = bytes.chunks_exact_mut(row_bytes).zip(absmax.chunks_exact_mut(row_blocks));
            for (row, (bytes, absmax)) in rows.chunks_exact(inner).zip(parts) {
                for ((block, bytes), absmax) in row.chunks(NF4_BLOCK).zip(bytes.chunks_mut(NF4_BLOCK / 2)).zip(absmax) {
                    *absmax = nf4_block(block, bytes);
                }
            }
            Ok(())
        })?;
        Ok(Self { format: BlockFormat::Nf4, out, inner, bytes, absmax })
    }

    /// A matrix in ggml's blocks, as a GGUF file holds them.
    ///
    /// **Errors**: NF4, rows that are no whole number of blocks, another number of bytes than that needs.
    pub fn from_blocks(format: BlockFormat, (out, inner): (usize, usize), bytes: Vec<u8>) -> Result<Self> {
        let (len, size) = format.block();
        if format == BlockFormat::Nf4 || !inner.is_multiple_of(len) || bytes.len() != out * inner / len * size {
            bail!("{} bytes are no [{out}, {inner}] in blocks of {len} values, {format:?}", bytes.len())
        }
        Ok(Self { format, out, inner, bytes, absmax: Vec::new() })
    }

    /// `(O, I)`
    pub fn dims(&self) -> (usize, usize) {
        (self.out, self.inner)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val(self.absmax.as_slice())
    }

    /// Bytes that a matrix `[O, I]` takes.
    pub fn bytes_of(format: BlockFormat, (out, inner): (usize, usize)) -> usize {
        let (len, size) = format.block();
        match format {
            BlockFormat::Nf4 => out * (inner.div_ceil(2) + size_of::<f32>() * inner.div_ceil(NF4_BLOCK)),
            BlockFormat::Q8_0 | BlockFormat::Q4K => out * inner.div_ceil(len) * size,
        }
    }

    /// Hands all that it holds to `body`, for a hash.
    pub fn contents(&self, mut body: impl FnMut(&[u8])) {
        body(&self.bytes);
        self.absmax.iter().for_each(|absmax| body(&absmax.to_le_bytes()));
    }

    /// Rows in f32: `[count, I]`.
    pub fn rows(&self, first: usize, count: usize) -> Result<Tensor> {
        if first + count > self.out {
            bail!("rows {first}..{} of a matrix with {} rows", first + count, self.out)
        }
        let mut values = vec![0f32; count * self.inner];
        values
            .par_chunks_mut(self.inner.max(1))
            .enumerate()
            .for_each(|(row, values)| self.unpack_row(first + row, 0, values));
        tensor(values, (count, self.inner))
    }

    /// The linear layer, as [`super::linear`].
    pub fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        let (rows, inner) = x.dims2()?;
        if inner != self.inner {
            bail!("linear: x has {inner} columns, w {}", self.inner)
        }
        let mut y = match residual {
            Some(residual) if residual.dims2()? == (rows, self.out) => read(residual)?.to_vec(),
            Some(residual) => bail!("linear: the residual is {:?}, expected [{rows}, {}]", residual.dims(), self.out),
            None => vec![0.0; rows * self.out],
        };
        let kernel = tile::best(precision.into());
        self.multiply(kernel, &mut y, residual.is_some(), &read(x)?, rows);
        if let Some(bias) = bias {
            add_rows(&mut y, &read(bias)?);
        }
        tensor(y, (rows, self.out))
    }

    fn multiply(&self, kernel: Kernel, y: &mut [f32], accumulate: bool, x: &[f32], rows: usize) {
        if !y.is_empty() && self.inner > 0 {
            let shape = (rows, self.out, self.inner);
            product(kernel, y, accumulate, shape, Operand::rows(x, self.inner), &Turned(self));
        }
    }

    /// Gradient of the input, as [`super::linear_backward_input`].
    pub fn backward_input(&self, dy: &Tensor, precision: Precision) -> Result<Tensor> {
        let (rows, out) = dy.dims2()?;
        if out != self.out {
            bail!("linear_backward_input: dy has {out} columns, w {} rows", self.out)
        }
        let mut dx = vec![0.0; rows * self.inner];
        self.multiply_backward(tile::best(precision.into()), &mut dx, &read(dy)?, rows);
        tensor(dx, (rows, self.inner))
    }

    fn multiply_backward(&self, kernel: Kernel, dx: &mut [f32], dy: &[f32], rows: usize) {
        if !dx.is_empty() && self.out > 0 {
            product(kernel, dx, false, (rows, self.inner, self.out), Operand::rows(dy, self.out), self);
        }
    }

    /// Values of a row from `start` on, a multiple of [`GROUP`].
    fn unpack_row(&self, row: usize, start: usize, values: &mut [f32]) {
        debug_assert!(start.is_multiple_of(GROUP));
        for (group, values) in (start / GROUP..).zip(values.chunks_mut(GROUP)) {
            self.unpack_group(row, group, values);
        }
    }

    /// Up to [`GROUP`] values of a row.
    #[inline]
    fn unpack_group(&self, row: usize, group: usize, values: &mut [f32]) {
        let (block_len, block_bytes) = self.format.block();
        let groups = block_len / GROUP;
        let (block, part) = (group / groups, group % groups);
        match self.format {
            BlockFormat::Nf4 => {
                let absmax = self.absmax[row * self.inner.div_ceil(NF4_BLOCK) + block];
                let bytes = &self.bytes[row * self.inner.div_ceil(2) + group * GROUP / 2..][..values.len().div_ceil(2)];
                let scaled = NF4_VALUES.map(|value| value * absmax);
                for (pair, byte) in values.chunks_mut(2).zip(bytes) {
                    let unpacked = [scaled[usize::from(byte >> 4)], scaled[usize::from(byte & 15)]];
                    pair.copy_from_slice(&unpacked[..pair.len()]);
                }
            }
            BlockFormat::Q8_0 => {
                let bytes = &self.bytes[(row * self.inner / block_len + block) * block_bytes..][..block_bytes];
                let scale = half_at(bytes, 0);
                values.iter_mut().zip(&bytes[2..]).for_each(|(value, byte)| *value = f32::from(*byte as i8) * scale);
            }
            BlockFormat::Q4K => {
                let bytes = &self.bytes[(row * self.inner / block_len + block) * block_bytes..][..block_bytes];
                let (scale, least) = q4k_scale(&bytes[4..16], part);
                let (scale, least) = (half_at(bytes, 0) * scale, half_at(bytes, 2) * least);
                let shift = 4 * (part % 2);
                for (value, byte) in values.iter_mut().zip(&bytes[16 + part / 2 * GROUP..]) {
                    *value = scale * f32::from(byte >> shift & 15) - least;
                }
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 6-bit scale and minimum of one of eight groups, out of their 12 bytes (ggml's `get_scale_min_k4`).
fn q4k_scale(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

/// Packs a block of up to 64 values, two a byte, the first in the high half; returns the scale.
fn nf4_block(values: &[f32], bytes: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let scale = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
    let code = |value: f32| {
        let middle = |i: usize| (NF4_VALUES[i] + NF4_VALUES[i + 1]) / 2.0;
        (0..15).filter(|&i| value * scale > middle(i)).count() as u8
    };
    for (pair, byte) in values.chunks(2).zip(bytes) {
        *byte = code(pair[0]) << 4 | pair.get(1).map_or(7, |value| code(*value));
    }
    absmax
}

/// `w` as `dy · w` multiplies with it: a column is one of `I`.
impl Columns for QuantizedWeight {
    fn pack_panel(&self, kernel: &Kernel, lines: &mut [Line], first: usize, n: usize, (start, len): (usize, usize)) {
        const LINES: usize = PANEL / Line::WORDS;
        let width = PANEL.min(n - first);
        let unpack = |k: usize| {
            let mut values = [0f32; PANEL];
            self.unpack_group(start + k, first / GROUP, &mut values[..width]);
            values
        };
        for (step, lines) in lines.chunks_exact_mut(LINES).enumerate() {
            let depth = kernel.depth(step, len);
            let row = unpack(depth.start);
            let second = (depth.len() == 2).then(|| unpack(depth.start + 1));
            kernel.pack_weights(&row[..width], second.as_ref().map(|row| &row[..width]), lines);
        }
    }
}

/// `wᵀ` as `x · wᵀ` multiplies with it: a column is a row of `w`.
struct Turned<'a>(&'a QuantizedWeight);

impl Columns for Turned<'_> {
    fn pack_panel(&self, kernel: &Kernel, lines: &mut [Line], first: usize, n: usize, (start, len): (usize, usize)) {
        let width = PANEL.min(n - first);
        let mut values = PANEL_ROWS.take();
        values.resize(width * len, 0.0);
        let mut rows = [&[][..]; PANEL];
        for ((row, values), slice) in (first..).zip(values.chunks_exact_mut(len)).zip(&mut rows) {
            self.0.unpack_row(row, start, values);
            *slice = values;
        }
        kernel.pack_weight_rows(&rows[..width], lines);
        PANEL_ROWS.set(values);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::{
        super::packed::{WeightDtype, tests::random},
        *,
    };

    fn weights(out: usize, inner: usize) -> Vec<QuantizedWeight> {
        let values = random(out * inner, 5);
        let nf4 = QuantizedWeight::nf4((out, inner), |first, rows| -> Result<()> {
            rows.copy_from_slice(&values[first * inner..][..rows.len()]);
            Ok(())
        });
        let mut all = vec![nf4.expect("nf4")];
        let matrix = tensor(values, (out, inner)).expect("a matrix");
        for (format, dtype) in [(BlockFormat::Q8_0, GgmlDType::Q8_0), (BlockFormat::Q4K, GgmlDType::Q4K)] {
            if inner.is_multiple_of(format.block().0) {
                let blocks = QTensor::quantize(&matrix, dtype).expect("blocks");
                let bytes = blocks.data().expect("bytes").into_owned();
                let ours = QuantizedWeight::from_blocks(format, (out, inner), bytes).expect("our blocks");
                let theirs =
                    blocks.dequantize(&candle_core::Device::Cpu).and_then(|it| it.flatten_all()?.to_vec1::<f32>());
                assert_eq!(crate::to_vec(&ours.rows(0, out).expect("rows")).expect("values"), theirs.expect("values"));
                all.push(ours);
            }
        }
        all
    }

    #[test]
    fn both_products_have_the_bits_of_the_unpacked_matrix_on_every_kernel() {
        for (rows, inner, out) in [(1, 32, 5), (13, 256, 40), (30, 2304, 33), (5, 50, 70), (4, 256, 2100)] {
            for weight in weights(out, inner) {
                let w = crate::to_vec(&weight.rows(0, out).expect("rows")).expect("values");
                let (x, dy) = (random(rows * inner, 6), random(rows * out, 7));
                for kernel in [WeightDtype::F32, WeightDtype::Bf16].into_iter().flat_map(tile::kernels) {
                    let (mut got, mut expected) = (vec![1.0; rows * out], vec![1.0; rows * out]);
                    weight.multiply(kernel, &mut got, true, &x, rows);
                    let (a, b) = (Operand::rows(&x, inner), Operand::transposed(&w, inner));
                    product(kernel, &mut expected, true, (rows, out, inner), a, &b);
                    assert_eq!(got, expected, "{:?} {} {rows} {inner} {out}", weight.format, kernel.name);
                    let (mut got, mut expected) = (vec![1.0; rows * inner], vec![1.0; rows * inner]);
                    weight.multiply_backward(kernel, &mut got, &dy, rows);
                    let (a, b) = (Operand::rows(&dy, out), Operand::rows(&w, inner));
                    product(kernel, &mut expected, false, (rows, inner, out), a, &b);
                    assert_eq!(got, expected, "{:?} {} backward", weight.format, kernel.name);
                }
            }
        }
    }

    #[test]
    fn nf4_takes_the_nearest_value_and_every_value_of_its_table_comes_back() -> Result<()> {
        let expected = include_str!("../../tests/nf4.txt");
        let row = |name: &str| -> Vec<f64> {
            let line = expected.lines().find_map(|line| line.strip_prefix(name)).expect("a row of the fixture");
            line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
        };
        let f32s = |name: &str| row(name).into_iter().map(|value| value as f32).collect::<Vec<f32>>();
        // The table that bitsandbytes has was computed in f32; this one in f64.
        let close = |got: &[f32], expected: &[f32]| {
            got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-7)
        };
        assert!(close(&NF4_VALUES, &f32s("table ")));
        let values = f32s("values ");
        let weight = QuantizedWeight::nf4((2, values.len() / 2), |first, rows| -> Result<()> {
            rows.copy_from_slice(&values[first * values.len() / 2..][..rows.len()]);
            Ok(())
        })?;
        assert_eq!(weight.absmax, f32s("absmax "));
        assert_eq!(weight.bytes, row("bytes ").into_iter().map(|byte| byte as u8).collect::<Vec<u8>>());
        assert!(close(&crate::to_vec(&weight.rows(0, 2)?)?, &f32s("unpacked ")));
        let again = QuantizedWeight::nf4((1, 16), |_, rows| -> Result<()> {
            rows.copy_from_slice(&NF4_VALUES);
            Ok(())
        })?;
        assert_eq!(crate::to_vec(&again.rows(0, 1)?)?, NF4_VALUES);
        assert!(
            weight.rows(1, 2).is_err()
                && QuantizedWeight::from_blocks(BlockFormat::Q8_0, (1, 48), vec![0; 51]).is_err()
        );
        Ok(())
    }
}
