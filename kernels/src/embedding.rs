//! Token embedding: rows of a table, and the gradient scattered back.

use candle_core::{Result, Tensor, bail};

use crate::host::{read, tensor, write};

/// Gathers rows.
///
/// **Shapes**: `table [V, C]`, `rows [N]` → `[N, C]`.
pub fn forward(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (count, width) = table.dims2()?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= count) {
        bail!("row {row} is past the end of a table of {count} rows")
    }
    let table = read(table)?;
    let mut y = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        y.extend_from_slice(&table[row as usize * width..(row as usize + 1) * width]);
    }
    tensor(y, (rows.len(), width))
}

/// Adds `dy [N, C]` to the rows of `dtable [V, C]` in place, in the order of the tokens.
pub fn backward(dtable: &Tensor, dy: &Tensor, rows: &[u32]) -> Result<()> {
    let (_, width) = dtable.dims2()?;
    let dy = read(dy)?;
    write(dtable, |dtable| {
        for (&row, dy) in rows.iter().zip(dy.chunks_exact(width)) {
            for (sum, dy) in dtable[row as usize * width..(row as usize + 1) * width].iter_mut().zip(dy) {
                *sum += dy;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn repeated_tokens_add_up_and_bad_ones_are_refused() -> Result<()> {
        let table = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((4, 3))?;
        assert_eq!(forward(&table, &[2, 0])?.to_vec2::<f32>()?, [[6., 7., 8.], [0., 1., 2.]]);
        assert!(forward(&table, &[4]).is_err());
        let gradient = Tensor::zeros((4, 3), candle_core::DType::F32, &Device::Cpu)?;
        backward(&gradient, &Tensor::ones((3, 3), candle_core::DType::F32, &Device::Cpu)?, &[1, 3, 1])?;
        assert_eq!(gradient.sum(1)?.to_vec1::<f32>()?, [0., 6., 0., 3.]);
        Ok(())
    }
}
