//! VLANs and private VLANs: which frames a port takes, and how they look there.
//!
//! Inside the switch every frame is of one VLAN. A port gives its frames one ([`VlanMode::ingress`]) and takes those of a set
//! ([`VlanMode::egress`]). Private VLANs need no more than this:
//!
//! | port | gives | takes |
//! |---|---|---|
//! | untagged, access | its VLAN | its VLAN |
//! | trunk | the tag's, or the native one | allowed and native |
//! | isolated | secondary | primary |
//! | community | secondary | primary, secondary |
//! | promiscuous | primary | primary, all its secondaries |

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Tag};
use crate::pipeline::TagEdit;

/// A VLAN, 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Vlan(u16);

/// A number that no VLAN has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no VLAN {0}: they are 1 to 4094")]
pub struct VlanError(u16);

impl TryFrom<u16> for Vlan {
    type Error = VlanError;

    fn try_from(number: u16) -> Result<Vlan, VlanError> {
        if (1..4095).contains(&number) { Ok(Vlan(number)) } else { Err(VlanError(number)) }
    }
}

impl From<Vlan> for u16 {
    fn from(vlan: Vlan) -> u16 {
        vlan.0
    }
}

/// VLANs from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanRange {
    /// The first.
    pub first: Vlan,
    /// The last; not below the first.
    pub last: Vlan,
}

impl VlanRange {
    fn contains(self, vlan: u16) -> bool {
        (self.first.0..=self.last.0).contains(&vlan)
    }
}

/// What a port is in VLANs. The number of frames without a tag, where nothing gives them another, is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VlanMode {
    /// In none: it reaches ports that are in none either, and a trunk's frames without a tag.
    #[default]
    Untagged,
    /// In one, without knowing it.
    Access {
        /// The VLAN.
        vlan: Vlan,
    },
    /// In many, by tags.
    Trunk {
        /// The VLAN of frames without a tag; without one they stay in none.
        #[serde(default)]
        native: Option<Vlan>,
        /// The VLANs of frames with a tag.
        allowed: Vec<VlanRange>,
    },
    /// In a private VLAN: reaches promiscuous ports only.
    Isolated {
        /// The private VLAN.
        primary: Vlan,
        /// The VLAN of what it sends.
        secondary: Vlan,
    },
    /// In a private VLAN: reaches promiscuous ports and those of the same community.
    Community {
        /// The private VLAN.
        primary: Vlan,
        /// The community.
        secondary: Vlan,
    },
    /// In a private VLAN: reaches all of it.
    Promiscuous {
        /// The private VLAN.
        primary: Vlan,
        /// The VLANs that it takes frames from.
        secondaries: Vec<Vlan>,
    },
}

/// Why a frame does not get into a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has a tag at a port without any, or one tag more than it may.
    Tagged,
    /// Its tag is none of the port's.
    NotAllowed,
}

impl VlanMode {
    /// A trunk for everything, as of uplinks.
    pub fn all() -> VlanMode {
        VlanMode::Trunk { native: None, allowed: vec![VlanRange { first: Vlan(1), last: Vlan(4094) }] }
    }

    /// The VLAN of a frame that comes in.
    pub fn ingress(&self, frame: &Frame) -> Result<u16, Refused> {
        let vlan = match self {
            VlanMode::Untagged => 0,
            VlanMode::Access { vlan } => vlan.0,
            VlanMode::Isolated { secondary, .. } | VlanMode::Community { secondary, .. } => secondary.0,
            VlanMode::Promiscuous { primary, .. } => primary.0,
            VlanMode::Trunk { native, allowed } => {
                let native = native.map_or(0, u16::from);
                let vlan = frame.tag.map_or(0, |tag| tag.vlan);
                return match vlan {
                    0 => Ok(native),
                    _ if vlan == native || allowed.iter().any(|range| range.contains(vlan)) => Ok(vlan),
                    _ => Err(Refused::NotAllowed),
                };
            }
        };
        // A priority without a VLAN is fine. A tag behind it would come to light when the first one is taken off, and carry the frame
        // into any VLAN.
        let is_plain = frame.tag.is_none_or(|tag| tag.vlan == 0) && !frame.stacked;
        if is_plain { Ok(vlan) } else { Err(Refused::Tagged) }
    }

    /// All VLANs that frames get into here.
    pub fn given(&self) -> impl Iterator<Item = u16> {
        let gives = move |number: &u16| match self {
            VlanMode::Untagged => *number == 0,
            VlanMode::Access { vlan } => *number == vlan.0,
            VlanMode::Isolated { secondary, .. } | VlanMode::Community { secondary, .. } => *number == secondary.0,
            VlanMode::Promiscuous { primary, .. } => *number == primary.0,
            VlanMode::Trunk { native, allowed } => {
                *number == native.map_or(0, u16::from) || allowed.iter().any(|range| range.contains(*number))
            }
        };
        (0..4095).filter(gives)
    }

    /// How a frame of a VLAN leaves, if the port takes it.
    pub fn egress(&self, vlan: u16) -> Option<Wire> {
        let takes = match self {
            VlanMode::Untagged => vlan == 0,
            VlanMode::Access { vlan: own } => vlan == own.0,
            VlanMode::Isolated { primary, .. } => vlan == primary.0,
            VlanMode::Community { primary, secondary } => vlan == primary.0 || vlan == secondary.0,
            VlanMode::Promiscuous { primary, secondaries } => {
                vlan == primary.0 || secondaries.iter().any(|secondary| vlan == secondary.0)
            }
            VlanMode::Trunk { native, allowed } => {
                return if vlan == native.map_or(0, u16::from) {
                    Some(Wire::Untagged)
                } else {
                    allowed.iter().any(|range| range.contains(vlan)).then_some(Wire::Tagged(vlan))
                };
            }
        };
        takes.then_some(Wire::Untagged)
    }

    /// The private VLAN that this port says some VLANs belong to.
    pub fn private(&self) -> Option<(Vlan, &[Vlan])> {
        match self {
            VlanMode::Isolated { primary, secondary } | VlanMode::Community { primary, secondary } => {
                Some((*primary, std::slice::from_ref(secondary)))
            }
            VlanMode::Promiscuous { primary, secondaries } => Some((*primary, secondaries)),
            VlanMode::Untagged | VlanMode::Access { .. } | VlanMode::Trunk { .. } => None,
        }
    }
}

/// How a frame is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Without a tag.
    Untagged,
    /// With the tag of a VLAN.
    Tagged(u16),
}

impl Wire {
    /// What is to be done to a frame with this outer tag. `None` if a tag behind it would come to light and be taken for its own.
    pub fn edit(self, tag: Option<Tag>, stacked: bool) -> Option<TagEdit> {
        match (self, tag) {
            (Wire::Untagged, None) => Some(TagEdit::Keep),
            (Wire::Untagged, Some(_)) if stacked => None,
            (Wire::Untagged, Some(_)) => Some(TagEdit::Pop),
            (Wire::Tagged(vlan), None) => Some(TagEdit::Push(vlan)),
            (Wire::Tagged(vlan), Some(tag)) if tag.vlan == vlan => Some(TagEdit::Keep),
            (Wire::Tagged(vlan), Some(_)) => Some(TagEdit::Replace(vlan)),
        }
    }
}
