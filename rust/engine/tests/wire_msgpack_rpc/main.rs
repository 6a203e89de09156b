//! MessagePack-RPC as clients see it: every request through an independent encoder (`rmpv`), every reply
//! through its decoder.

mod hot_path;
mod replies;
mod requests;
mod round_trip;

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::wire::msgpack_rpc::{Parsed, parse};
use pycounter_engine::wire::request::Request;
use pycounter_engine::wire::scan::FrameLimits;
use rmpv::Value;

const LIMITS: FrameLimits = FrameLimits { bytes_max: 64 << 20 };
const SESSION: [u8; 16] = *b"sixteen bytes id";

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

fn call(method: &str, params: Vec<Value>) -> Vec<u8> {
    encode(&Value::Array(vec![0.into(), 7.into(), method.into(), Value::Array(params)]))
}

/// What a request means, or the code it is refused with.
fn outcome(frame: &[u8]) -> Result<Request<'_>, ErrorCode> {
    match parse(frame) {
        Parsed::Request { msgid: 7, request } => request.map_err(|error| error.code),
        other => panic!("not the request: {other:?}"),
    }
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn array<const N: usize>(values: [Value; N]) -> Value {
    Value::Array(values.to_vec())
}

fn bin(bytes: &[u8]) -> Value {
    Value::Binary(bytes.to_vec())
}
