//! What goes over the socket between a daemon and a keeper: messages of one size.

/// The version of these messages; a keeper of another one is replaced.
pub(super) const VERSION: u32 = 1;

/// The size of a message, in bytes.
pub(super) const WIRE: usize = 24;

/// What a daemon orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Splice everything that is there, and answer with [`Report::Has`] for each agent, then [`Report::Ready`]. What is not kept again until [`Order::Sweep`] is dropped.
    Greet {
        /// The version of the daemon's messages.
        version: u32,
    },
    /// Splice the streams of an agent, whose descriptors come along.
    Keep {
        /// Which agent.
        token: u64,
    },
    /// Hold the read ends of an agent's pipes, which come along, and read nothing: whoever writes sees a reader.
    Hold {
        /// Which agent.
        token: u64,
    },
    /// Splice what is in an agent's pipes, then answer with [`Report::Drained`].
    Drain {
        /// Which agent.
        token: u64,
        /// What the answer is to repeat.
        ticket: u64,
    },
    /// Splice what is in an agent's pipes, and close them.
    Forget {
        /// Which agent.
        token: u64,
    },
    /// Forget the agents that were not kept since [`Order::Greet`].
    Sweep,
    /// Listen for daemons to come on the bound socket that comes along: the one before was deleted.
    Listen,
    /// Splice everything that is there, and end.
    Quit,
}

/// What a keeper reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It serves.
    Ready {
        /// The version of its messages.
        version: u32,
        /// How many agents it can serve.
        capacity: usize,
    },
    /// It has the pipes of this agent; before [`Report::Ready`].
    Has {
        /// Which agent.
        token: u64,
    },
    /// An agent's pipes are empty, or what is in them cannot be written now.
    Drained {
        /// What the order said.
        ticket: u64,
    },
    /// It has no room for these streams, their descriptors did not arrive, or another keeper has them.
    Refused {
        /// Which agent.
        token: u64,
    },
    /// A spool file cannot be written to. It is tried again each second.
    Fault {
        /// Which agent.
        token: u64,
        /// The error number.
        errno: i32,
    },
}

const GREET: u32 = 1;
const KEEP: u32 = 2;
const DRAIN: u32 = 3;
const FORGET: u32 = 4;
const SWEEP: u32 = 5;
const QUIT: u32 = 6;
const READY: u32 = 7;
const DRAINED: u32 = 8;
const REFUSED: u32 = 9;
const FAULT: u32 = 10;
const HOLD: u32 = 11;
const HAS: u32 = 12;
const LISTEN: u32 = 13;

fn encode(kind: u32, small: u32, first: u64, second: u64) -> [u8; WIRE] {
    let mut bytes = [0; WIRE];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&small.to_ne_bytes());
    bytes[8..16].copy_from_slice(&first.to_ne_bytes());
    bytes[16..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

fn decode(bytes: &[u8; WIRE]) -> (u32, u32, u64, u64) {
    let [k0, k1, k2, k3, s0, s1, s2, s3, rest @ ..] = *bytes;
    let [f0, f1, f2, f3, f4, f5, f6, f7, t0, t1, t2, t3, t4, t5, t6, t7] = rest;
    (
        u32::from_ne_bytes([k0, k1, k2, k3]),
        u32::from_ne_bytes([s0, s1, s2, s3]),
        u64::from_ne_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
        u64::from_ne_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
    )
}

impl Order {
    pub(super) fn encode(self) -> [u8; WIRE] {
        match self {
            Self::Greet { version } => encode(GREET, version, 0, 0),
            Self::Keep { token } => encode(KEEP, 0, token, 0),
            Self::Hold { token } => encode(HOLD, 0, token, 0),
            Self::Drain { token, ticket } => encode(DRAIN, 0, token, ticket),
            Self::Forget { token } => encode(FORGET, 0, token, 0),
            Self::Sweep => encode(SWEEP, 0, 0, 0),
            Self::Listen => encode(LISTEN, 0, 0, 0),
            Self::Quit => encode(QUIT, 0, 0, 0),
        }
    }

    pub(super) fn decode(bytes: &[u8; WIRE]) -> Option<Self> {
        let (kind, version, token, ticket) = decode(bytes);
        Some(match kind {
            GREET => Self::Greet { version },
            KEEP => Self::Keep { token },
            HOLD => Self::Hold { token },
            DRAIN => Self::Drain { token, ticket },
            FORGET => Self::Forget { token },
            SWEEP => Self::Sweep,
            LISTEN => Self::Listen,
            QUIT => Self::Quit,
            _ => return None,
        })
    }
}

impl Report {
    pub(super) fn encode(self) -> [u8; WIRE] {
        match self {
            Self::Ready { version, capacity } => encode(READY, version, capacity as u64, 0),
            Self::Has { token } => encode(HAS, 0, token, 0),
            Self::Drained { ticket } => encode(DRAINED, 0, 0, ticket),
            Self::Refused { token } => encode(REFUSED, 0, token, 0),
            Self::Fault { token, errno } => encode(FAULT, errno.cast_unsigned(), token, 0),
        }
    }

    pub(super) fn decode(bytes: &[u8; WIRE]) -> Option<Self> {
        let (kind, small, token, ticket) = decode(bytes);
        Some(match kind {
            READY => Self::Ready { version: small, capacity: usize::try_from(token).unwrap_or(0) },
            HAS => Self::Has { token },
            DRAINED => Self::Drained { ticket },
            REFUSED => Self::Refused { token },
            FAULT => Self::Fault { token, errno: small.cast_signed() },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_out_as_it_went_in() {
        let (token, ticket) = (u64::MAX - 1, 7);
        let orders = [
            Order::Greet { version: VERSION },
            Order::Keep { token },
            Order::Hold { token },
            Order::Drain { token, ticket },
            Order::Forget { token },
            Order::Sweep,
            Order::Listen,
            Order::Quit,
        ];
        for order in orders {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        let reports = [
            Report::Ready { version: VERSION, capacity: 12 },
            Report::Has { token },
            Report::Drained { ticket },
            Report::Refused { token },
            Report::Fault { token, errno: libc::ENOSPC },
        ];
        for report in reports {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!((Order::decode(&[0; WIRE]), Report::decode(&[0xff; WIRE])), (None, None));
    }
}
