//! What `docs/wire.md` shows is true: its bytes decode to what is written beside them, its requests are
//! accepted or refused as it says, and its table of error codes is the one in the source.

use std::path::Path;

use pycounter_engine::error_code::{Effect, ErrorCode};
use pycounter_engine::wire::scan::{FrameLimits, Protocol, Scan, detect};
use pycounter_engine::wire::{msgpack_rpc, resp};

const LIMITS: FrameLimits = FrameLimits { bytes_max: 1 << 20 };

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/wire.md")).unwrap()
}

/// The lines of the blocks fenced as `language`.
fn examples<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        match line.strip_prefix("```") {
            Some(fence) => inside = fence == language,
            None if inside && !line.is_empty() => lines.push(line),
            None => {}
        }
    }
    assert!(lines.len() >= 10, "the document shows little {language}");
    lines
}

#[test]
fn messagepack_bytes_decode_to_what_stands_beside_them() {
    for line in examples(&document(), "msgpack-rpc") {
        let (side, rest) = line.split_once(' ').unwrap();
        let (hex, meaning) = rest.split_once("  ").unwrap_or_else(|| panic!("no meaning beside {line}"));
        let bytes: Vec<u8> = hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let mut rest = &bytes[..];
        let value = rmpv::decode::read_value(&mut rest).unwrap();
        assert_eq!((value.to_string().as_str(), rest), (meaning.trim(), &b""[..]), "{line}");
        match side {
            ">" => {
                assert_eq!(detect(bytes[0]), Some(Protocol::MsgpackRpc), "{line}");
                let scan = msgpack_rpc::FrameScanner::default().scan(&bytes, LIMITS);
                assert_eq!(scan, Ok(Scan::Complete(bytes.len())), "{line}");
                let parsed = msgpack_rpc::parse(&bytes);
                let is_fine = matches!(
                    parsed,
                    msgpack_rpc::Parsed::Request { request: Ok(_), .. }
                        | msgpack_rpc::Parsed::Notification { request: Ok(_), .. }
                );
                assert!(is_fine, "{line}: {parsed:?}");
            }
            "<" => assert_eq!(msgpack_rpc::fail_held(&bytes, &mut Vec::new(), ErrorCode::Internal, ""), 1, "{line}"),
            other => panic!("neither sent nor received: {other}"),
        }
    }
}

#[test]
fn resp_lines_are_requests_and_replies() {
    for line in examples(&document(), "resp") {
        let (side, rest) = line.split_once(' ').unwrap();
        let bytes = rest.replace("\\r", "\r").replace("\\n", "\n").into_bytes();
        match side {
            ">" => {
                assert_eq!(detect(bytes[0]), Some(Protocol::Resp), "{line}");
                let scan = resp::FrameScanner::default().scan(&bytes, LIMITS);
                assert_eq!(scan, Ok(Scan::Complete(bytes.len())), "{line}");
                assert!(resp::parse(&bytes).is_ok(), "{line}");
            }
            "<" => assert_eq!(resp::fail_held(&bytes, &mut Vec::new(), ErrorCode::Internal, ""), 1, "{line}"),
            other => panic!("neither sent nor received: {other}"),
        }
    }
}

#[test]
fn the_table_of_codes_is_complete_and_true() {
    let document = document();
    for &code in ErrorCode::ALL {
        let retry = if code.retryable() { "yes" } else { "no" };
        let effect = match code.effect() {
            Effect::Nothing => "nothing",
            Effect::Before => "applied before",
            Effect::Unknown => "unknown",
        };
        let mut line = Vec::new();
        resp::write_error(&mut line, code, "");
        let prefix = String::from_utf8(line).unwrap();
        let prefix = prefix.trim_start_matches('-').split(' ').next().unwrap();
        let row = format!("| `{}` | {retry} | {effect} | `{prefix}` | {} |", code.name(), code.meaning());
        assert!(document.contains(&row), "docs/wire.md lacks\n{row}");
    }
    let is_row = |line: &&str| line.contains("` | yes | ") || line.contains("` | no | ");
    assert_eq!(document.lines().filter(is_row).count(), ErrorCode::ALL.len(), "the table has a code that isn't one");
}

/// A line of the document's table of commands.
fn command_line(row: &resp::CommandRow) -> String {
    let name = row.name.to_ascii_uppercase().replace('|', " ");
    let usage = format!("{name} {}", row.arguments).trim_end().replace('|', "\\|");
    format!("| `{usage}` | {} |", row.summary)
}

#[test]
fn the_table_of_commands_is_the_one_in_the_source() {
    let document = document();
    let head = "| command | what it does |\n| --- | --- |\n";
    let (_, table) = document.split_once(head).expect("the table of commands");
    let listed: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).collect();
    // What has subcommands is listed by them.
    let rows = resp::COMMANDS
        .iter()
        .flat_map(|row| if row.subcommands.is_empty() { std::slice::from_ref(row) } else { row.subcommands });
    let expected: Vec<_> = rows.filter(|row| row.own_name() != "help").map(command_line).collect();
    assert!(listed == expected, "the table should be\n{head}{}", expected.join("\n"));
}
