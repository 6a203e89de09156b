//! Figures and words by name: what `stats`, `health` and INFO are made of.

use std::fmt::Write as _;

use crate::wire::msgpack_rpc as rpc;

/// A figure or a word, for `stats`, `health` and INFO.
#[derive(Debug, Clone, PartialEq)]
pub enum Figure {
    /// A count, bytes, or milliseconds where the name says so.
    Number(u64),
    /// A word or a sentence.
    Text(String),
}

/// Figures by name.
pub type Figures = Vec<(&'static str, Figure)>;

/// As a MessagePack map.
pub(crate) fn write_figures(out: &mut Vec<u8>, figures: &[(&'static str, Figure)]) {
    rpc::write_map_len(out, figures.len());
    write_pairs(out, figures);
}

/// What is in such a map.
pub(crate) fn write_pairs(out: &mut Vec<u8>, figures: &[(&'static str, Figure)]) {
    for (name, figure) in figures {
        rpc::write_str(out, name);
        match figure {
            Figure::Number(number) => rpc::write_u64(out, *number),
            Figure::Text(text) => rpc::write_str(out, text),
        }
    }
}

/// Is this one among the sections of INFO that are asked for?
pub(crate) fn wants_section(sections: &[&[u8]], name: &str) -> bool {
    sections.is_empty()
        || sections.iter().any(|section| {
            section.eq_ignore_ascii_case(name.as_bytes())
                || [&b"all"[..], b"default", b"everything"].iter().any(|all| section.eq_ignore_ascii_case(all))
        })
}

/// INFO's text: `blocks` that Redis's clients and dashboards know, then all `figures`; of both the `sections` asked for.
pub(crate) fn info_text(sections: &[&[u8]], blocks: &[(&str, String)], figures: &[(&'static str, Figure)]) -> String {
    let mut text = String::new();
    for (name, body) in blocks.iter().filter(|(name, _)| wants_section(sections, name)) {
        // Writing to a String can't fail.
        let _ = write!(text, "# {name}\r\n{body}\r\n");
    }
    if wants_section(sections, "PyCounter") {
        text.push_str("# PyCounter\r\n");
        for (name, figure) in figures {
            let _ = match figure {
                Figure::Number(number) => write!(text, "pycounter_{name}:{number}\r\n"),
                Figure::Text(word) => write!(text, "pycounter_{name}:{word}\r\n"),
            };
        }
    }
    text
}
