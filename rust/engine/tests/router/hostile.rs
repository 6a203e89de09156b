//! Any bytes from clients, cut anywhere: no crash, and the same replies however they are cut.

use proptest::prelude::*;
use pycounter_engine::router::RouterSettings;
use rmpv::Value;

use super::cluster::{Cluster, call, map, settings};

/// Requests that are answered without the host.
fn request(number: u64) -> impl Strategy<Value = (String, Vec<u8>)> {
    let key = (0..6_u32).prop_map(|key| format!("key-{key}"));
    (key, 0..10_u32, -5..5_i64).prop_map(move |(key, kind, delta)| {
        let text = match kind {
            0..=2 => {
                format!("*3\r\n$6\r\nINCRBY\r\n${}\r\n{key}\r\n${}\r\n{delta}\r\n", key.len(), delta.to_string().len())
            }
            3 | 4 => format!("*2\r\n$4\r\nincr\r\n${}\r\n{key}\r\n", key.len()),
            5 => format!("GET {key}\r\n"),
            6 => format!("MGET {key} key-1 never\r\n"),
            7 => "HELLO 3\r\nPING\r\n".to_owned(),
            8 => format!("MULTI\r\nINCR {key}\r\nGET {key}\r\nEXEC\r\n"),
            _ => "\r\nINCRBY x y\r\nRESET\r\n".to_owned(),
        };
        let id = map(&[("id", format!("id-{number}-{key}-{delta}").into())]);
        let item = |parts: &[Value]| Value::Array(parts.to_vec());
        let frame = match kind {
            0..=2 => call(number, "incr", &[key.into(), delta.into()]),
            3 => call(number, "incr", &[key.into(), delta.into(), id]),
            4 => call(number, "incr", &["".into()]),
            5 => call(number, "get", &[key.into()]),
            6 => call(number, "get_many", &[Value::Array(vec![key.into(), "never".into()])]),
            7 => call(number, "ping", &[]),
            _ => call(
                number,
                "incr_many",
                &[item(&[item(&[key.into(), delta.into()]), item(&["a".into(), "b".into()])])],
            ),
        };
        (text, frame)
    })
}

fn requests() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let some = (0..40_u64).map(request).collect::<Vec<_>>();
    some.prop_map(|requests| {
        let resp = requests.iter().flat_map(|(text, _)| text.bytes()).collect();
        (resp, requests.into_iter().flat_map(|(_, frame)| frame).collect())
    })
}

/// What a client is answered that sends these bytes in pieces of these lengths, with so many turns between.
fn answered(bytes: &[u8], cuts: &[(usize, bool)], seen_in_order: bool) -> Vec<u8> {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let mut rest = bytes;
    for &(length, turn) in cuts.iter().cycle() {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        cluster.send(client, piece);
        if turn {
            cluster.run();
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    cluster.run();
    let output = cluster.output(client);
    if seen_in_order {
        return output;
    }
    // MessagePack's replies may overtake each other: by msgid.
    let mut replies: Vec<_> = super::cluster::replies(&output).into_iter().collect();
    replies.sort_by_key(|(msgid, _)| *msgid);
    format!("{replies:?}").into_bytes()
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_the_input_gives_the_same_replies(
        (resp, msgpack) in requests(),
        cuts in proptest::collection::vec((1..40_usize, any::<bool>()), 1..20),
    ) {
        for (bytes, seen_in_order) in [(resp, true), (msgpack, false)] {
            let whole = answered(&bytes, &[(bytes.len(), true)], seen_in_order);
            prop_assert_eq!(text(&answered(&bytes, &cuts, seen_in_order)), text(&whole));
        }
    }

    #[test]
    fn whatever_bound_stops_a_connection_it_goes_on_once_there_is_room(
        clients in proptest::collection::vec((requests(), any::<bool>()), 2..5),
        (reply_bytes_max, held_bytes_max) in (64..4000_usize, 100..4000_usize),
        turns in proptest::collection::vec((any::<prop::sample::Index>(), 1..400_usize, 0..2_usize, any::<bool>()), 1..60),
    ) {
        let mut cluster = Cluster::with_settings(2, RouterSettings { reply_bytes_max, held_bytes_max, ..settings() });
        let mut clients: Vec<_> = clients
            .into_iter()
            .map(|((resp, msgpack), is_resp)| (cluster.router.connect(), if is_resp { resp } else { msgpack }))
            .collect();
        for (client, length, shard, stalls) in turns {
            let client = client.index(clients.len());
            let (place, rest) = &mut clients[client];
            // One whose connection is crowded isn't read from.
            if !cluster.router.connection(*place).unwrap().is_crowded() {
                let piece: Vec<u8> = rest.drain(..length.min(rest.len())).collect();
                cluster.send(*place, &piece);
            }
            cluster.stalled[shard] = stalls;
            cluster.run();
        }
        cluster.stalled = vec![false; 2];
        cluster.run();
        for (place, _) in &clients {
            let connection = cluster.router.connection(*place).unwrap();
            let is_idle = !connection.is_crowded() && !connection.is_owed();
            // Nothing begins with an empty line.
            prop_assert!(is_idle || connection.is_closing(), "{}", text(&cluster.output(*place)));
        }
        prop_assert_eq!((cluster.figure("under_way"), cluster.figure("held_bytes")), (0, 0));
    }

    #[test]
    fn any_bytes_are_answered_or_the_connection_ends(
        (resp, msgpack) in requests(),
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cuts in proptest::collection::vec((1..200_usize, any::<bool>()), 1..6),
    ) {
        let mut cluster = Cluster::new(2);
        for mut bytes in [resp, msgpack] {
            for (place, byte) in &places {
                let index = place.index(bytes.len());
                bytes[index] = *byte;
            }
            let client = cluster.router.connect();
            let mut rest = &bytes[..];
            for &(length, turn) in cuts.iter().cycle().take(bytes.len()) {
                let (piece, after) = rest.split_at(length.min(rest.len()));
                cluster.send(client, piece);
                if turn {
                    cluster.run();
                    for request in cluster.host_requests(client) {
                        cluster.router.answer(client, request.token, Some("internal: x"), b"");
                    }
                }
                rest = after;
            }
            cluster.run();
            for request in cluster.host_requests(client) {
                cluster.router.answer(client, request.token, None, b"\x01");
            }
            cluster.run();
            cluster.router.disconnect(client);
        }
        // Others are served.
        let client = cluster.router.connect();
        prop_assert_eq!(cluster.resp(client, "PING\r\n"), "+PONG\r\n");
        prop_assert_eq!(cluster.figure("under_way"), 0);
        prop_assert_eq!(cluster.figure("held_bytes"), 0);
        prop_assert_eq!(cluster.figure("input_bytes"), 0);
    }
}
