//! The arguments of a command as the table notes them, for `COMMAND DOCS`.
//!
//! `key` is a value, `GET` a word to be sent as it is, `COUNT count` such a word with its value. `[...]` may be left out,
//! `<...>` belongs together, `a|b` is one of the two, and ` ...` behind something repeats it.

use super::reply_writer::{Version, write_array_len, write_bulk, write_map_len, write_simple};

/// One argument, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    kind: Kind,
    /// To be sent before it.
    token: Option<&'static str>,
    is_optional: bool,
    is_repeated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Value(&'static str),
    /// Only its token is sent.
    Token,
    /// Everything within.
    Block(Vec<Argument>),
    /// One of what is within.
    OneOf(Vec<Argument>),
}

impl Argument {
    const fn new(kind: Kind) -> Self {
        Self { kind, token: None, is_optional: false, is_repeated: false }
    }

    /// What several arguments in a row are as one.
    fn of_sequence(mut sequence: Vec<Self>) -> Self {
        match sequence.pop() {
            Some(only) if sequence.is_empty() => only,
            last => {
                sequence.extend(last);
                Self::new(Kind::Block(sequence))
            }
        }
    }

    fn name(&self) -> String {
        match (&self.kind, self.token) {
            (Kind::Value(name), _) => (*name).to_owned(),
            (_, Some(token)) => token.to_ascii_lowercase(),
            (Kind::OneOf(parts) | Kind::Block(parts), None) => {
                parts.first().map_or_else(String::new, |first| format!("{}-group", first.name()))
            }
            (Kind::Token, None) => String::new(),
        }
    }

    const fn type_name(&self) -> &'static str {
        match &self.kind {
            Kind::Value(name) => match name.as_bytes() {
                b"key" => "key",
                b"pattern" => "pattern",
                b"n" | b"cursor" | b"count" | b"id" | b"protover" | b"replicas" | b"timeout" | b"0" => "integer",
                _ => "string",
            },
            Kind::Token => "pure-token",
            Kind::Block(_) => "block",
            Kind::OneOf(_) => "oneof",
        }
    }

    fn write(&self, version: Version, out: &mut Vec<u8>) {
        let parts = match &self.kind {
            Kind::Block(parts) | Kind::OneOf(parts) => Some(parts),
            Kind::Value(_) | Kind::Token => None,
        };
        let flags: Vec<_> = [(self.is_optional, "optional"), (self.is_repeated, "multiple")]
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name))
            .collect();
        let fields =
            2 + usize::from(self.token.is_some()) + usize::from(!flags.is_empty()) + usize::from(parts.is_some());
        write_map_len(out, version, fields);
        write_bulk(out, b"name");
        write_bulk(out, self.name().as_bytes());
        write_bulk(out, b"type");
        write_bulk(out, self.type_name().as_bytes());
        if let Some(token) = self.token {
            write_bulk(out, b"token");
            write_bulk(out, token.as_bytes());
        }
        if !flags.is_empty() {
            write_bulk(out, b"flags");
            write_array_len(out, flags.len());
            for flag in flags {
                write_simple(out, flag);
            }
        }
        if let Some(parts) = parts {
            write_bulk(out, b"arguments");
            write_arguments(parts, version, out);
        }
    }
}

/// An array of arguments, as `COMMAND DOCS` has it.
pub(super) fn write_arguments(arguments: &[Argument], version: Version, out: &mut Vec<u8>) {
    write_array_len(out, arguments.len());
    for argument in arguments {
        argument.write(version, out);
    }
}

/// Reads the notation. It stands in this program, so what it doesn't know is a bug that a test finds.
pub(super) fn parse(mut notation: &'static str) -> Vec<Argument> {
    parse_alternatives(&mut notation)
}

/// Up to the bracket that closes it.
fn parse_alternatives(rest: &mut &'static str) -> Vec<Argument> {
    let mut alternatives = vec![parse_sequence(rest)];
    while let Some(after) = rest.strip_prefix('|') {
        *rest = after;
        alternatives.push(parse_sequence(rest));
    }
    match alternatives.len() {
        1 => alternatives.pop().unwrap_or_default(),
        _ => vec![Argument::new(Kind::OneOf(alternatives.into_iter().map(Argument::of_sequence).collect()))],
    }
}

/// Up to a `|` or a bracket that closes it.
fn parse_sequence(rest: &mut &'static str) -> Vec<Argument> {
    let mut sequence: Vec<Argument> = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("...") {
            *rest = after;
            if let Some(last) = sequence.last_mut() {
                last.is_repeated = true;
            }
            continue;
        }
        let argument = match rest.as_bytes().first() {
            None | Some(b'|' | b']' | b'>') => return sequence,
            Some(&bracket @ (b'[' | b'<')) => {
                *rest = &rest[1..];
                let mut inner = Argument::of_sequence(parse_alternatives(rest));
                *rest = rest.get(1..).unwrap_or_default();
                inner.is_optional |= bracket == b'[';
                inner
            }
            Some(_) => {
                let end = rest.find([' ', '|', ']', '>']).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                *rest = after;
                Argument::new(Kind::Value(word))
            }
        };
        let is_token =
            |kind: &Kind| matches!(kind, Kind::Value(word) if word.bytes().any(|byte| byte.is_ascii_uppercase()));
        match sequence.last_mut() {
            _ if is_token(&argument.kind) => {
                let Kind::Value(token) = argument.kind else { continue };
                sequence.push(Argument { kind: Kind::Token, token: Some(token), ..argument });
            }
            // What follows a word to be sent is its value.
            Some(last) if last.kind == Kind::Token && !argument.is_optional => last.kind = argument.kind,
            _ => sequence.push(argument),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command_table::COMMANDS;
    use super::*;

    /// The notation again, in Redis's own way of showing it.
    fn shown(arguments: &[Argument], between: &str) -> String {
        let one = |argument: &Argument| {
            let value = match &argument.kind {
                Kind::Value(name) => (*name).to_owned(),
                Kind::Token => String::new(),
                Kind::Block(parts) => shown(parts, " "),
                Kind::OneOf(parts) => shown(parts, "|"),
            };
            let parts = [argument.token.unwrap_or_default(), &value];
            let text = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ");
            let text = if argument.is_repeated { format!("{text} [{text} ...]") } else { text };
            if argument.is_optional { format!("[{text}]") } else { text }
        };
        arguments.iter().map(one).collect::<Vec<_>>().join(between)
    }

    #[test]
    fn the_notation_is_read_as_it_is_meant() {
        for (notation, expected) in [
            ("", ""),
            ("key n", "key n"),
            ("key ...", "key [key ...]"),
            ("[section ...]", "[section [section ...]]"),
            ("<key n> ...", "key n [key n ...]"),
            ("key n [NX|XX] [GET]", "key n [NX|XX] [GET]"),
            ("cursor [MATCH pattern] [COUNT count]", "cursor [MATCH pattern] [COUNT count]"),
            ("[protover [AUTH user token] [SETNAME name]]", "[protover [AUTH user token] [SETNAME name]]"),
            ("LIB-NAME name|LIB-VER version", "LIB-NAME name|LIB-VER version"),
            ("[FILTERBY <MODULE module|PATTERN pattern>]", "[FILTERBY MODULE module|PATTERN pattern]"),
            ("[TYPE type] [ID id ...]", "[TYPE type] [ID id [ID id ...]]"),
        ] {
            assert_eq!(shown(&parse(notation), " "), expected, "{notation}");
        }
    }

    #[test]
    fn every_notation_in_the_table_is_used_up() {
        for row in COMMANDS.iter().flat_map(|row| std::iter::once(row).chain(row.subcommands)) {
            let mut rest = row.arguments;
            parse_alternatives(&mut rest);
            assert_eq!(rest, "", "{}", row.name);
        }
    }
}
