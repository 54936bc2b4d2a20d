//! Columns that line up.

/// Prints rows under a header, each column as wide as its widest cell.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| console::measure_text_width(cell));
            cells.max().unwrap_or(0).max(title.len())
        })
        .collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| console::pad_str(cell, *width, console::Alignment::Left, None).into_owned())
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&header.iter().map(|title| title.to_uppercase()).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

/// Prints `name: value` lines, values aligned.
pub fn fields(pairs: &[(&str, String)]) {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        println!("{name:>width$}  {value}");
    }
}
