//! What a gateway in a pod has of the operator's parts: pure, changed part by part, shared by copies.
//!
//! A [`Way`] leads from one [`Held`] to the next, piece by piece. What is wrong with a part concerns that part alone: it keeps its last good form, or has
//! none, and is listed. The hash is of what was sent, so that a part that this build cannot read still counts.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use sekimori_crds::snapshot::{EARLIER_FORM, FleetPart, Part, PartKey, RollingHash, TenantPart, part_words};
use serde::Deserialize;

use super::shards::Shards;
use super::{CAPABILITIES, Config, ConfigError, Tenants};

/// Parts that are taken at most: a hundred bytes each for those alone that are refused.
const PARTS_MAX: usize = 1_000_000;
/// Longest text that is said of a refused part, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

/// Domains that are remembered of a refused part, at most.
const DOMAINS_MAX: usize = 1_000;

/// A place in the history of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counts up with every leader.
    pub epoch: u64,
    /// Counts up within an epoch.
    pub number: u64,
    /// Over all parts.
    pub hash: RollingHash,
}

/// Why the newest form of a part is not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refused {
    /// The capability that this build lacks; empty: it is not valid.
    pub lacks: String,
    /// For people.
    pub message: String,
    /// Domains that the part names, as far as that could be read. Mail for those that nobody else serves is deferred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Held {
    place: Option<Place>,
    hash: RollingHash,
    /// What each part's newest form adds to the hash, whether or not it could be used.
    words: Shards<[u64; 4]>,
    fleet: Option<Arc<FleetPart>>,
    tenants: Tenants,
    refused: Arc<BTreeMap<Arc<str>, Refused>>,
}

/// The way to another place, being walked.
#[derive(Clone, Debug)]
pub struct Way {
    next: Held,
    /// Of a whole snapshot: the keys so far.
    seen: Option<HashSet<Arc<str>>>,
}

impl Held {
    /// Where it stands; `None` where nothing was reached yet, or something does not add up: then everything is wanted.
    pub const fn place(&self) -> Option<Place> {
        self.place
    }

    /// The sum over the newest forms.
    pub const fn hash(&self) -> RollingHash {
        self.hash
    }

    /// Parts whose newest form is not in force, by key.
    pub fn refused(&self) -> &BTreeMap<Arc<str>, Refused> {
        &self.refused
    }

    /// The fleet's settings in force.
    pub const fn fleet(&self) -> Option<&Arc<FleetPart>> {
        self.fleet.as_ref()
    }

    /// The tenants.
    pub const fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// Keys of all parts, each with what its newest form adds to the hash.
    pub fn words(&self) -> impl Iterator<Item = (&Arc<str>, &[u64; 4])> {
        self.words.iter()
    }

    /// What the newest form of one part adds to the hash.
    pub fn words_of(&self, key: &str) -> Option<&[u64; 4]> {
        self.words.get(key)
    }

    /// What can be run of it.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let fleet = self.fleet.clone().ok_or(ConfigError::NoFleet)?;
        Config::new(fleet, self.tenants.clone(), self.hash)
    }

    /// Begins a way from here; `full`: what is not named on it is gone at its end.
    pub fn depart(&self, full: bool) -> Way {
        Way { next: self.clone(), seen: full.then(HashSet::new) }
    }

    /// Removed tenants that `is_needed` does not hold are forgotten; how many.
    pub fn forget(&mut self, mut is_needed: impl FnMut(&str) -> bool) -> usize {
        let over: Vec<Arc<str>> = self.tenants.removed().filter(|key| !is_needed(key)).cloned().collect();
        over.iter().for_each(|key| self.tenants.forget(key));
        over.len()
    }

    /// The fleet's newest settings turned out not to work here (a port is taken, an engine cannot be connected): those of `before` stay.
    pub fn refuse_fleet(&mut self, before: Option<&Arc<FleetPart>>, message: &str) {
        self.fleet = before.cloned();
        self.refuse(&"fleet".into(), refused(message));
    }

    /// Everything is wanted again.
    pub const fn lose_place(&mut self) {
        self.place = None;
    }

    /// Number of tenants that it was told of, also of those whose newest form is not usable here.
    pub fn tenants_known(&self) -> u32 {
        // All parts but the fleet's own. Asked for with every change, so nothing is counted here.
        u32::try_from(self.words.len() - usize::from(self.words.get("fleet").is_some())).unwrap_or(u32::MAX)
    }

    /// What was kept on disk, part by part; [`Self::restored`] ends it. `words` is `None` for a part that is gone; a `removed` tenant has mail.
    pub fn restore(&mut self, key: Arc<str>, words: Option<[u64; 4]>, form: Option<Form>, removed: bool, refused: Option<Refused>) {
        if let Some(words) = words {
            self.hash.add_words(words);
            self.words.insert(Arc::clone(&key), words);
        }
        match form {
            Some(Form::Fleet(fleet)) => self.fleet = Some(Arc::new(*fleet)),
            Some(Form::Tenant(part)) if removed => self.tenants.put_removed(*part),
            Some(Form::Tenant(part)) => self.tenants.put(*part, refused.is_some()),
            None => {}
        }
        if let Some(refused) = refused {
            self.note(&key, refused);
        }
    }

    /// All parts are there. A part that this build refused before may be good for it now, so then everything is asked for anew.
    pub fn restored(&mut self, place: Option<Place>) {
        self.place = place.filter(|place| place.hash == self.hash && self.refused.is_empty());
    }

    fn note(&mut self, key: &Arc<str>, why: Refused) {
        self.accept(key);
        self.tenants.defer(key, &why.domains);
        Arc::make_mut(&mut self.refused).insert(Arc::clone(key), why);
    }

    fn refuse(&mut self, key: &Arc<str>, why: Refused) {
        self.note(key, why);
        if let Some(tenant) = key.strip_prefix("tenant/") {
            self.tenants.keep(tenant);
        }
    }

    fn put(&mut self, key: &Arc<str>, json: &[u8], fleet_check: &dyn Fn(&FleetPart) -> Result<(), String>) {
        let words = part_words(key, json);
        // One that was refused is looked at again: what stood in its way may be gone.
        if self.words.get(key) == Some(&words) && !self.refused.contains_key(key) {
            return;
        }
        if self.words.len() >= PARTS_MAX && self.words.get(key).is_none() {
            self.refuse(key, refused(&format!("more than {PARTS_MAX} parts")));
            return;
        }
        if let Some(before) = self.words.insert(Arc::clone(key), words) {
            self.hash.remove_words(before);
        }
        self.hash.add_words(words);
        match read(key, json) {
            Ok(Form::Fleet(fleet)) => match check_fleet(&fleet).and_then(|()| fleet_check(&fleet)) {
                Ok(()) => {
                    self.accept(key);
                    self.fleet = Some(Arc::new(*fleet));
                }
                Err(why) => self.refuse(key, refused(&why)),
            },
            Ok(Form::Tenant(tenant)) => {
                self.accept(key);
                self.tenants.put(*tenant, false);
            }
            Err(why) => self.refuse(key, why),
        }
    }

    fn accept(&mut self, key: &str) {
        if self.refused.contains_key(key)
            && let Some(refused) = Arc::make_mut(&mut self.refused).remove(key)
        {
            self.tenants.defer_no_more(key, &refused.domains);
        }
    }

    fn take(&mut self, key: &str) {
        self.accept(key);
        let Some(words) = self.words.remove(key) else { return };
        self.hash.remove_words(words);
        // A fleet that is gone leaves its settings: a gateway without any cannot run, and it is not for the stream to stop it.
        if let Some(tenant) = key.strip_prefix("tenant/") {
            self.tenants.remove(tenant);
        }
    }
}

impl Way {
    /// One change: a part as JSON, or empty where it is gone. `fleet_check` says what of a fleet's settings cannot be run here.
    pub fn change(&mut self, key: &str, json: &[u8], fleet_check: &dyn Fn(&FleetPart) -> Result<(), String>) {
        let key: Arc<str> = key.into();
        if let Some(seen) = &mut self.seen
            && !json.is_empty()
        {
            seen.insert(Arc::clone(&key));
        }
        if json.is_empty() {
            self.next.take(&key);
        } else {
            self.next.put(&key, json, fleet_check);
        }
    }

    /// The last piece is there. False: the parts do not add up to the hash that was promised; they are put in force all the same, as each is right by
    /// itself, but the place counts as not reached.
    pub fn arrive(mut self, to: Place) -> (Held, bool) {
        if let Some(seen) = self.seen.take() {
            let gone: Vec<Arc<str>> = self.next.words.iter().map(|(key, _)| key).filter(|key| !seen.contains(*key)).cloned().collect();
            gone.iter().for_each(|key| self.next.take(key));
        }
        let adds_up = self.next.hash == to.hash;
        self.next.place = adds_up.then_some(to);
        (self.next, adds_up)
    }
}

/// A part that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The fleet's settings.
    Fleet(Box<FleetPart>),
    /// A tenant.
    Tenant(Box<TenantPart>),
}

fn refused(message: &str) -> Refused {
    Refused { lacks: String::new(), message: message.chars().take(MESSAGE_CHARS_MAX).collect(), domains: vec![] }
}

/// The part, if this build can use it. What it requires is looked at before anything else, as whatever needs it may not be readable.
fn read(key: &str, json: &[u8]) -> Result<Form, Refused> {
    #[derive(Deserialize)]
    struct Needs {
        #[serde(default)]
        requires: Vec<String>,
        #[serde(default)]
        domains: Vec<String>,
    }
    let mut needs: Needs = serde_json::from_slice(json).map_err(|error| refused(&format!("part {key} is no JSON of a part: {error}")))?;
    needs.domains.truncate(DOMAINS_MAX);
    if let Some(lacks) = needs.requires.iter().find(|wanted| !CAPABILITIES.contains(&wanted.as_str())) {
        let message = if lacks == EARLIER_FORM {
            format!("part {key} says only that its last good form stays: there is nothing newer that could be used")
        } else {
            format!("part {key} needs '{lacks}', which this gateway lacks: use a newer gateway")
        };
        return Err(Refused { lacks: lacks.chars().take(MESSAGE_CHARS_MAX).collect(), message, domains: needs.domains });
    }
    usable(key, json).map_err(|message| Refused { domains: needs.domains, ..refused(&message) })
}

fn usable(key: &str, json: &[u8]) -> Result<Form, String> {
    let named: PartKey = key.parse()?;
    let part: Part = serde_json::from_slice(json).map_err(|error| format!("part {key}: {error}"))?;
    match (named, part) {
        (PartKey::Fleet, Part::Fleet(fleet)) => Ok(Form::Fleet(fleet)),
        (PartKey::Tenant { namespace, name }, Part::Tenant(tenant)) if tenant.namespace == namespace && tenant.name == name => {
            Ok(Form::Tenant(tenant))
        }
        _ => Err(format!("part {key} says in itself that it is another one")),
    }
}

fn check_fleet(fleet: &FleetPart) -> Result<(), String> {
    Config::new(Arc::new(fleet.clone()), Tenants::default(), RollingHash::default()).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
