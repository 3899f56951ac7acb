//! The figures, and how they are shown: beside their goals as a table, as JSON, as a section of BENCHMARKS.md. Pure, but for what the machine is.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::processes::Cost;

/// Goals: a tenant is served by every gateway within this, p99, seconds.
const SERVED_SECONDS: f64 = 2.0;
/// The operator's memory, MiB.
const OPERATOR_MIB: f64 = 512.0;
/// A new gateway has its snapshot within this, seconds.
const NEW_GATEWAY_SECONDS: f64 = 10.0;
/// An idle operator needs less of a core, percent.
const IDLE_PERCENT: f64 = 2.0;

/// Times of many of a kind, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Times {
    pub(super) count: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Times {
    /// Percentiles by nearest rank.
    pub(super) fn of(times: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        Self { count: sorted.len(), p50_ms: rank(50), p99_ms: rank(99), max_ms: rank(100) }
    }
}

/// From nothing to all tenants.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fill {
    /// Creating all of them took so long.
    pub(super) create_seconds: f64,
    /// From the first write until every gateway served every tenant.
    pub(super) served_seconds: f64,
    /// And until each one's status said Programmed; none: the run went on before.
    pub(super) programmed_seconds: Option<f64>,
    /// Statuses that were written by then, and in how many seconds.
    pub(super) status_writes: u64,
    pub(super) status_seconds: f64,
    pub(super) costs: Vec<Cost>,
}

/// Nothing happens.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Idle {
    pub(super) seconds: f64,
    pub(super) leader_percent: f64,
    pub(super) costs: Vec<Cost>,
}

/// Changes at a steady rate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Changes {
    pub(super) per_minute: u32,
    pub(super) minutes: u32,
    /// From the API write to a 250 for its domain from every gateway: new tenants, and changed ones.
    pub(super) new: Times,
    pub(super) changed: Times,
    /// Of that, the API server's answer to the write.
    pub(super) written: Times,
    pub(super) never_served: usize,
    pub(super) costs: Vec<Cost>,
}

/// One gateway more, with nothing on its volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewGateway {
    /// From the start of its process to a 250 for tenants from everywhere in the set.
    pub(super) serves_seconds: f64,
    /// From the order for one more gateway to that.
    pub(super) ordered_to_serves_seconds: f64,
    /// By its log: from the open stream to the whole configuration in force.
    pub(super) snapshot_seconds: Option<f64>,
}

/// Mail at the end.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mail {
    pub(super) acknowledged: u64,
    pub(super) arrived: u64,
}

/// What it ran on.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) command: String,
    pub(super) processors: usize,
    pub(super) memory_gib: f64,
    /// The load average of a minute before the run began.
    pub(super) load_before: f64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    pub(super) machine: Machine,
    pub(super) tenants: usize,
    pub(super) namespaces: usize,
    pub(super) gateways: usize,
    pub(super) fill: Fill,
    /// None: the operator was not idle, because statuses were still to be written.
    pub(super) idle: Option<Idle>,
    pub(super) changes: Changes,
    pub(super) new_gateway: NewGateway,
    pub(super) mail: Mail,
    /// Which of the processes leads.
    pub(super) leader: String,
    /// Containers of operators and gateways that began again during the run.
    pub(super) restarts: u64,
    pub(super) goals: Vec<Goal>,
}

/// A goal, and whether it was reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Goal {
    pub(super) figure: String,
    pub(super) goal: String,
    pub(super) measured: String,
    pub(super) reached: bool,
}

impl Figures {
    /// Sets the measured beside what was to be reached.
    pub(super) fn judge(mut self) -> Self {
        let Changes { new, changed, never_served, per_minute, .. } = &self.changes;
        let served = |kind: &str, times: &Times| Goal {
            figure: format!("{kind} applied to served by all {} gateways, {per_minute} changes a minute, p99", self.gateways),
            goal: format!("< {SERVED_SECONDS} s"),
            measured: format!(
                "{:.3} s (p50 {:.3} s, max {:.3} s, {} of them)",
                times.p99_ms / 1e3,
                times.p50_ms / 1e3,
                times.max_ms / 1e3,
                times.count
            ),
            reached: *never_served == 0 && times.count > 0 && times.p99_ms < SERVED_SECONDS * 1e3,
        };
        let memory = |what: &str, costs: &[Cost]| {
            let most = costs.iter().filter(|cost| is_operator(cost)).map(|cost| cost.memory_max_mib).fold(0.0, f64::max);
            Goal {
                figure: format!("operator's memory at most, {what}"),
                goal: format!("< {OPERATOR_MIB} MiB"),
                measured: format!("{most:.0} MiB"),
                reached: most > 0.0 && most < OPERATOR_MIB && self.restarts == 0,
            }
        };
        let gateway = &self.new_gateway;
        self.goals = vec![
            served("new tenant", new),
            served("changed tenant", changed),
            memory("while they come", &self.fill.costs),
            memory("during the changes", &self.changes.costs),
            Goal {
                figure: "new gateway, from its start to serving".into(),
                goal: format!("< {NEW_GATEWAY_SECONDS} s"),
                measured: format!(
                    "{:.2} s{}",
                    gateway.serves_seconds,
                    gateway.snapshot_seconds.map(|seconds| format!(" (its snapshot {seconds:.2} s)")).unwrap_or_default()
                ),
                reached: gateway.serves_seconds < NEW_GATEWAY_SECONDS,
            },
            Goal {
                figure: "idle leader".into(),
                goal: format!("< {IDLE_PERCENT} % of a core"),
                measured: self.idle.as_ref().map_or_else(
                    || "not measured: it was not idle, statuses were still to be written".into(),
                    |idle| format!("{:.2} % over {:.0} s", idle.leader_percent, idle.seconds),
                ),
                reached: self.idle.as_ref().is_some_and(|idle| idle.leader_percent < IDLE_PERCENT),
            },
        ];
        self
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0).expect("a String takes everything");
        text
    }

    /// For BENCHMARKS.md.
    pub(super) fn section(&self) -> String {
        let mut text = format!("\n## {}: {} tenants at a real API server\n\n", self.machine.date, thousands(self.tenants));
        self.write(&mut text, 1).expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String, level: usize) -> std::fmt::Result {
        let Machine { command, processors, memory_gib, load_before, .. } = &self.machine;
        let (fill, changes) = (&self.fill, &self.changes);
        let ticks = "`".repeat(level);
        writeln!(
            text,
            "{ticks}{command}{ticks}: a cluster of its own, {} namespaces, {} gateways with built-in engines, two operators; everything (API server and etcd, which does not \
             sync, too) on {processors} processors and {memory_gib:.0} GiB; load {load_before:.2} before it began.\n",
            self.namespaces, self.gateways
        )?;
        writeln!(text, "| figure | goal | measured | reached |\n|---|---|---|---|")?;
        for Goal { figure, goal, measured, reached } in &self.goals {
            writeln!(text, "| {figure} | {goal} | {measured} | {} |", if *reached { "yes" } else { "NO" })?;
        }
        let programmed = fill.programmed_seconds.map_or_else(
            || format!("the run went on before each one's status said so (within {:.0} s", fill.status_seconds),
            |seconds| format!("each one's status said so after {seconds:.0} s (in all"),
        );
        writeln!(
            text,
            "\nAll {} tenants were created in {:.0} s ({:.0} a second), served by every gateway {:.1} s after the last write; {programmed} {} status writes, {:.0} a second).",
            thousands(self.tenants),
            fill.create_seconds,
            self.tenants as f64 / fill.create_seconds,
            fill.served_seconds - fill.create_seconds,
            fill.status_writes,
            fill.status_writes as f64 / fill.status_seconds,
        )?;
        writeln!(
            text,
            "The API server answered a write after {:.0} ms (p50), {:.0} ms (p99), which is part of the figure; never served: {}. A new gateway served {:.1} s after it was ordered. \
             Mail at the end: {} acknowledged, {} arrived. Containers that began again: {}.\n",
            changes.written.p50_ms,
            changes.written.p99_ms,
            changes.never_served,
            self.new_gateway.ordered_to_serves_seconds,
            self.mail.acknowledged,
            self.mail.arrived,
            self.restarts
        )?;
        self.write_costs(text)
    }

    fn write_costs(&self, text: &mut String) -> std::fmt::Result {
        let (minutes, idle) = (self.changes.minutes, self.idle.as_ref());
        let seconds = idle.map_or_else(String::new, |idle| format!(" {:.0} s", idle.seconds));
        writeln!(
            text,
            "| process | while they come: memory at most, CPU | idle{seconds}: memory, CPU | changes, {minutes} min: memory at most, CPU |\n|---|---|---|---|"
        )?;
        for fill in &self.fill.costs {
            let of = |costs: &[Cost]| costs.iter().find(|cost| cost.name == fill.name).cloned();
            let most = |cost: &Cost| format!("{:.0} MiB, {:.1} s", cost.memory_max_mib, cost.cpu_seconds);
            let idle = idle.and_then(|idle| of(&idle.costs)).map(|cost| format!("{:.0} MiB, {:.2} s", cost.memory_mib, cost.cpu_seconds));
            let changes = of(&self.changes.costs).map(|cost| most(&cost));
            let (leads, none) = (if fill.name == self.leader { " (leads)" } else { "" }, || "-".to_owned());
            writeln!(text, "| {}{leads} | {} | {} | {} |", fill.name, most(fill), idle.unwrap_or_else(none), changes.unwrap_or_else(none))?;
        }
        Ok(())
    }
}

fn is_operator(cost: &Cost) -> bool {
    cost.name.starts_with(super::OPERATOR)
}

/// "100,000".
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

impl Machine {
    /// This one, now.
    pub(super) fn here(command: String) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kib = read("/proc/meminfo").split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default();
        let date = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
        Self {
            date: date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default(),
            command,
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_gib: kib / 1024.0 / 1024.0,
            load_before: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(name: &str, memory_max_mib: f64) -> Cost {
        Cost { name: name.into(), memory_mib: memory_max_mib / 2.0, memory_max_mib, cpu_seconds: 1.0 }
    }

    fn figures() -> Figures {
        let good = Times { count: 500, p50_ms: 300.0, p99_ms: 900.0, max_ms: 1_200.0 };
        let costs = vec![cost("sekimori-operator-1", 300.0), cost("sekimori-operator-2", 20.0), cost("gate-gateway-0", 700.0)];
        Figures {
            machine: Machine { date: "2026-11-25".into(), command: "make bench-cluster".into(), processors: 2, memory_gib: 8.0, load_before: 0.1 },
            tenants: 100_000,
            namespaces: 100,
            gateways: 3,
            fill: Fill {
                create_seconds: 100.0,
                served_seconds: 101.0,
                programmed_seconds: Some(110.0),
                status_writes: 100_000,
                status_seconds: 110.0,
                costs: costs.clone(),
            },
            idle: Some(Idle { seconds: 120.0, leader_percent: 0.5, costs: costs.clone() }),
            changes: Changes { per_minute: 1_000, minutes: 1, new: good, changed: good, written: good, never_served: 0, costs },
            new_gateway: NewGateway { serves_seconds: 3.0, ordered_to_serves_seconds: 5.0, snapshot_seconds: Some(2.0) },
            mail: Mail { acknowledged: 20, arrived: 20 },
            leader: "sekimori-operator-1".into(),
            restarts: 0,
            goals: vec![],
        }
    }

    fn missed(figures: Figures) -> Vec<String> {
        figures.judge().goals.into_iter().filter(|goal| !goal.reached).map(|goal| goal.figure).collect()
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<Duration> = (1..=1_000).rev().map(Duration::from_millis).collect();
        assert_eq!(Times::of(&times), Times { count: 1_000, p50_ms: 500.0, p99_ms: 990.0, max_ms: 1_000.0 });
        assert_eq!(Times::of(&[Duration::from_millis(7)]), Times { count: 1, p50_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 });
        assert_eq!(Times::of(&[]), Times::default());
    }

    #[test]
    fn a_missed_goal_is_said() {
        assert_eq!(missed(figures()), Vec::<String>::new());
        type Case = (fn(&mut Figures), &'static str);
        let cases: [Case; 7] = [
            (|figures| figures.changes.new.p99_ms = 2_000.0, "new tenant"),
            (|figures| figures.changes.changed.count = 0, "changed tenant"),
            (|figures| figures.changes.costs = vec![cost("sekimori-operator-1", 20.0), cost("sekimori-operator-2", 512.0)], "during the changes"),
            (|figures| figures.fill.costs.clear(), "while they come"),
            (|figures| figures.new_gateway.serves_seconds = 10.0, "new gateway"),
            (|figures| figures.idle.as_mut().expect("measured").leader_percent = 2.0, "idle leader"),
            (|figures| figures.idle = None, "idle leader"),
        ];
        for (change, named) in cases {
            let mut figures = figures();
            change(&mut figures);
            let missed = missed(figures);
            assert!(missed.len() == 1 && missed.iter().all(|goal| goal.contains(named)), "{named}: {missed:?}");
        }
        let mut unserved = figures();
        unserved.changes.never_served = 1;
        assert_eq!(missed(unserved).len(), 2, "one that never came is in no percentile");
        let mut restarted = figures();
        restarted.restarts = 1;
        assert_eq!(missed(restarted).len(), 2, "who was killed for his memory had none afterwards");
    }

    #[test]
    fn the_section_has_everything_that_was_measured() {
        let text = figures().judge().section();
        for words in [
            "## 2026-11-25: 100,000 tenants",
            "`make bench-cluster`: ",
            "| < 2 s | 0.900 s (p50 0.300 s",
            "sekimori-operator-1 (leads) | 300 MiB",
            "gate-gateway-0 |",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(!text.contains("| NO |"));
    }
}
