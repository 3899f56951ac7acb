//! The closed sets of words that users write in the custom resources and that gateways act on.
//!
//! One place for both, so that a word means the same in a CRD, in a snapshot and in the gateway. No behaviour here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[schemars(transform = crate::v1alpha1::common::undescribed)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every word of the set, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word as users write it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

words! {
    /// What is done with a message for one recipient, from mild to harsh.
    Action {
        /// Deliver with trace headers only.
        Deliver,
        /// Deliver marked: `X-Spam-Status: Yes` and the policy's subject tag.
        Tag,
        /// Answer 451, the sender tries again.
        Defer,
        /// Accept and keep in the tenant's quarantine.
        Quarantine,
        /// Accept and drop, logged.
        Discard,
        /// Refuse in the session.
        Reject,
    }
}
words! {
    /// What happens to a message when fewer engines than the policy's minimum completed a scan.
    TooFewEngines {
        /// Answer 451.
        Defer,
        /// Accept and keep in quarantine.
        Quarantine,
        /// Deliver, marked `unscanned` in header, log and metric.
        PassUnscanned,
    }
}
words! {
    /// Whether a check is off, only recorded, or acted on.
    CheckMode {
        /// Not evaluated.
        Disabled,
        /// Evaluated and recorded in `Authentication-Results`.
        Observe,
        /// Evaluated, recorded and acted on.
        Enforce,
    }
}
words! {
    /// What follows when DNS failed temporarily during an evaluation.
    OnTempError {
        /// Go on as if there were no record.
        Continue,
        /// Answer 451.
        Defer,
    }
}
words! {
    /// What an engine looks for.
    EngineClass {
        /// Malware.
        AntiVirus,
        /// Unwanted mail.
        AntiSpam,
        /// Unknown malware, by running it.
        Sandbox,
    }
}
words! {
    /// Whether an engine's opinion counts.
    EngineMode {
        /// It counts.
        Enforce,
        /// It scans the same mail and is measured, but does not count.
        Shadow,
        /// It is not called.
        Disabled,
    }
}
words! {
    /// What a tenant's domains do with mail.
    TenantState {
        /// Accept and deliver.
        Active,
        /// Accept, deliver nothing, and stop the expiry clock.
        Hold,
        /// Refuse: 450 4.2.1 for seven days, then 550.
        Suspended,
    }
}
words! {
    /// Whether verdicts are acted on.
    Enforcement {
        /// Act on every verdict.
        Enforce,
        /// Judge and mark everything, act on nothing but delivery: for migrations.
        Observe,
    }
}
words! {
    /// How accepted mail is handed over.
    DeliveryMode {
        /// Deliver while the sender waits; the queue if that is not possible.
        InlineElseQueue,
        /// Spool and sync first, deliver later.
        Queue,
        /// Deliver while the sender waits or refuse with 4xx; nothing is ever at rest.
        Inline,
    }
}
words! {
    /// How a route's host becomes addresses.
    RouteLookup {
        /// A and AAAA of the host, or an address literal.
        Address,
        /// MX of the host (RFC 5321 section 5).
        Mx,
    }
}
words! {
    /// What TLS a route demands.
    RouteTls {
        /// Never offered.
        Disabled,
        /// STARTTLS where offered, any certificate; plain text otherwise.
        Opportunistic,
        /// STARTTLS with a certificate that verifies for the host, or no delivery.
        Required,
        /// RFC 7672.
        Dane,
        /// RFC 8461.
        MtaSts,
    }
}
words! {
    /// What TLS a listener offers.
    ListenerTls {
        /// No STARTTLS.
        Disabled,
        /// STARTTLS is offered.
        Opportunistic,
        /// MAIL before STARTTLS is refused with 530 5.7.0.
        Required,
        /// TLS from the first byte (RFC 8314).
        Implicit,
    }
}
words! {
    /// What a listener is for.
    ListenerRole {
        /// Mail from the Internet to the tenants' domains.
        Inbound,
        /// Mail from the tenants to the Internet.
        Relay,
    }
}
words! {
    /// What a listener does with a bare CR or a bare LF in content.
    BareLineEndings {
        /// Refuse the message with 550 5.5.2.
        Refuse,
        /// Turn each into CRLF (a bare LF never ends DATA).
        Normalise,
    }
}
words! {
    /// How much the `X-Sekimori-Verdict` header says.
    VerdictHeader {
        /// Action, decibans, each engine with version, opinion and milliseconds.
        Full,
        /// Action and classes only.
        Summary,
        /// Only written for messages that passed unscanned or with encrypted content.
        Disabled,
    }
}
words! {
    /// How a namespace proves that it may claim a domain.
    Ownership {
        /// A DomainGrant covers it.
        Grant,
        /// A DNS TXT record at `_sekimori.<domain>`.
        DnsTxt,
        /// It is believed.
        Trust,
    }
}
words! {
    /// What a list entry compares.
    ListEntryType {
        /// The domain of the (DMARC-verified) From, or of the envelope sender for deny.
        Domain,
        /// The whole address.
        Address,
        /// The client's network.
        Network,
    }
}
words! {
    /// The protocol that an engine speaks.
    EngineProtocol {
        /// clamd's INSTREAM over TCP or a unix socket.
        Clamd,
        /// rspamd's HTTP `/checkv2`.
        Rspamd,
        /// SpamAssassin's spamd, SPAMC/1.5.
        Spamd,
        /// RFC 3507.
        Icap,
        /// Sendmail's milter protocol, version 6.
        Milter,
        /// JSON over HTTP.
        Http,
        /// Inside the gateway.
        Builtin,
    }
}

/// How hard a disposition is, for comparing: later in [`Action::ALL`] is harsher.
impl Action {
    /// The harsher of two actions.
    pub fn harsher(self, other: Self) -> Self {
        self.max(other)
    }
}
