//! THE CONTRACT. JSON-RPC 2.0 over a Unix stream socket, one message a line: any language with a socket and JSON is a client.
//!
//! ```text
//! --> {"jsonrpc":"2.0","id":1,"method":"pause","params":{"target":{"level":2}}}
//! <-- {"jsonrpc":"2.0","id":1,"result":[{"id":"worker-1","paused":"own",...}]}
//! <-- {"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"...","data":{"code":"no_such_agent","remedy":"..."}}}
//! <-- {"jsonrpc":"2.0","method":"event","params":{"call":3,"event":{"seq":17,...}}}
//! ```
//!
//! * Requests of one connection may be on their way side by side; answers carry the request's `id` and come in any order.
//! * A line of a request has [`REQUEST_MAX`] bytes at most, its `id` [`CALL_ID_MAX`]; a client has [`CALLS_MAX`] unanswered calls and
//!   as many that follow, [`WIDE_MAX`] of them the output of many agents.
//! * An agent has [`CLIENTS_OF_AGENT_MAX`] connections at most, and so on; [`CLIENTS_OF_OPERATOR_MIN`] are reserved for the operator.
//! * A list of agents is written as its reader takes it: each is told as it is when its entry is written. Until then no further
//!   request of the connection is taken, nor while one that reads (`show`, `stats`, `events`, `logs`, `doctor`, …) is being answered.
//! * `error.data.code` is stable ([`Code`](crate::model::error::Code)); the message is for people.
//! * A following call (`events`, `logs`, `follow`) is answered at once; what follows comes as notifications that name the call. A
//!   slow reader loses only its own, and is told how many. Output is told after the events that came before it.

pub mod client;
pub mod message;
pub mod method;
pub mod schema;

/// The longest line of a request, in bytes.
pub const REQUEST_MAX: usize = 1 << 20;

/// The most calls of one client that may be unanswered at once, and the most that may follow.
pub const CALLS_MAX: usize = 1024;

/// The longest `id` of a request, in bytes as JSON.
pub const CALL_ID_MAX: usize = 256;

/// The most of them that follow many agents each: every one costs a place for each agent.
pub const WIDE_MAX: usize = 16;

/// The most connections at once.
pub const CLIENTS_MAX: usize = 512;

/// How many of them only the operator can have: root, or the user that the daemon runs as, outside the herd.
pub const CLIENTS_OF_OPERATOR_MIN: usize = 64;

/// The most connections of one agent at once.
pub const CLIENTS_OF_AGENT_MAX: usize = 64;

/// The most connections at once of one root agent and all agents below it.
pub const CLIENTS_OF_TREE_MAX: usize = 256;

/// The most connections at once of one user outside the herd who is not the operator.
pub const CLIENTS_OF_USER_MAX: usize = 128;

/// Where a daemon listens if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/treeherd/treeherd.sock";
