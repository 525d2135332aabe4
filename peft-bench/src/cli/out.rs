//! What the program writes to its standard streams.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use peft_core::{Error, Result, shown, shown_lines};

/// Writes a line to standard error.
pub fn tell(line: impl Display) {
    eprintln!("{}", shown(line));
}

/// Writes a line, or a text of several, to standard output.
pub fn print(line: impl Display) -> Result<()> {
    print_part(format_args!("{line}\n"))
}

/// Writes a part of a line to standard output at once. A reader that has gone away ends the program in silence, as it does any other.
pub fn print_part(part: impl Display) -> Result<()> {
    let mut output = std::io::stdout();
    write!(output, "{}", shown_lines(part)).and_then(|()| output.flush()).map_err(|source| match source.kind() {
        ErrorKind::BrokenPipe => std::process::exit(0),
        _ => Error::io("write", "standard output")(source),
    })
}
