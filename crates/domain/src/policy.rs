//! Gates: what an alias demands of a version before it may stand behind it, and how each demand is judged.
//!
//! Judging is a pure function of what is known about the version; whoever calls it has looked everything up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::ids::{AliasName, Digest, Version};

const MAX_METRIC_GATES: usize = 32;
const MAX_APPROVALS: u32 = 16;
const MAX_METRIC_BYTES: usize = 128;

/// One entry of the log of an alias' policies; the last is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub alias: AliasName,
    /// Position in the log, from 1.
    pub seq: u64,
    pub gates: Gates,
    pub who: String,
    pub why: String,
    pub at_ms: u64,
}

/// What is demanded. The default demands nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gates {
    pub metrics: Vec<MetricGate>,
    pub signature: bool,
    /// Principals other than the publisher that must have approved.
    pub approvals: u32,
    pub same_base: bool,
    pub serving: BTreeSet<Server>,
}

/// Bounds of one figure of the manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricGate {
    pub metric: String,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    /// Not below the present version's by more than this.
    pub max_drop: Option<f64>,
    /// Not above the present version's by more than this.
    pub max_rise: Option<f64>,
}

/// What can be demanded to be able to serve a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    Tailor,
    Vllm,
}

impl Server {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tailor => "tailor",
            Self::Vllm => "vllm",
        }
    }
}

impl std::str::FromStr for Server {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "tailor" => Ok(Self::Tailor),
            "vllm" => Ok(Self::Vllm),
            other => Err(Invalid::new("gates.serving", format!("{other:?} is neither tailor nor vllm"))),
        }
    }
}

/// `adapters/<name>/approvals/<version>/<n>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub version: Version,
    /// Absent: for every alias.
    pub alias: Option<AliasName>,
    /// What was approved, whatever it is called.
    pub digest: Digest,
    pub who: String,
    pub why: String,
    pub at_ms: u64,
}

/// What is known about a version when it is judged.
#[derive(Debug, Clone, Default)]
pub struct Candidate<'a> {
    pub metrics: BTreeMap<String, f64>,
    /// The figures of the version that the alias points to now; `None` where it points nowhere.
    pub present_metrics: Option<BTreeMap<String, f64>>,
    pub signed: bool,
    pub publisher: &'a str,
    /// Who approved it, the publisher left out.
    pub approved_by: BTreeSet<String>,
    pub base_fingerprint: &'a str,
    pub present_base_fingerprint: Option<&'a str>,
    /// Of each server that is asked for: why it cannot serve the version; empty: it can.
    pub obstacles: BTreeMap<Server, Vec<String>>,
}

/// One demand, what was found, and whether that is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    pub kind: &'static str,
    /// A metric's or a server's name.
    pub subject: String,
    pub passed: bool,
    pub figure: String,
    pub threshold: String,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "passed" } else { "not passed" };
        let subject = if self.subject.is_empty() { self.kind } else { &self.subject };
        write!(f, "{subject} is {} ({} demanded): {verdict}", self.figure, self.threshold)
    }
}

impl Gates {
    /// # Errors
    /// A bound that is no number, a negative tolerance, a metric without a name or without a bound, or too many of them.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.metrics.len() > MAX_METRIC_GATES {
            let problem = format!("{} metrics; the limit is {MAX_METRIC_GATES}", self.metrics.len());
            return Err(Invalid::new("gates.metrics", problem));
        }
        if self.approvals > MAX_APPROVALS {
            let problem = format!("{} approvals; the limit is {MAX_APPROVALS}", self.approvals);
            return Err(Invalid::new("gates.approvals", problem));
        }
        self.metrics.iter().try_for_each(MetricGate::validate)
    }

    /// Every demand with what was found, in a fixed order.
    pub fn judge(&self, candidate: &Candidate<'_>) -> Vec<Gate> {
        let mut judged: Vec<Gate> = self.metrics.iter().flat_map(|gate| gate.judge(candidate)).collect();
        if self.signature {
            judged.push(Gate {
                kind: "signature",
                subject: String::new(),
                passed: candidate.signed,
                figure: if candidate.signed { "there and holds".into() } else { "not there, or does not hold".into() },
                threshold: "one that holds".into(),
            });
        }
        if self.approvals > 0 {
            judged.push(self.judge_approvals(candidate));
        }
        if self.same_base {
            judged.push(Gate {
                kind: "same_base",
                subject: String::new(),
                passed: candidate.present_base_fingerprint.is_none_or(|present| present == candidate.base_fingerprint),
                figure: candidate.base_fingerprint.to_owned(),
                threshold: candidate.present_base_fingerprint.unwrap_or("any, for the alias is new").to_owned(),
            });
        }
        for server in &self.serving {
            let obstacles = candidate.obstacles.get(server).map(Vec::as_slice).unwrap_or_default();
            judged.push(Gate {
                kind: "serving",
                subject: server.as_str().into(),
                passed: obstacles.is_empty(),
                figure: if obstacles.is_empty() { "able to serve it".into() } else { obstacles.join(", ") },
                threshold: "able to serve it".into(),
            });
        }
        judged
    }

    fn judge_approvals(&self, candidate: &Candidate<'_>) -> Gate {
        let found = candidate.approved_by.len();
        let names: Vec<&str> = candidate.approved_by.iter().map(String::as_str).collect();
        let publisher = match candidate.publisher {
            "" => "its publisher".to_owned(),
            name => format!("its publisher, {name}"),
        };
        Gate {
            kind: "approvals",
            subject: String::new(),
            passed: found >= self.approvals as usize,
            figure: if names.is_empty() { "0".into() } else { format!("{found} by {}", names.join(" and ")) },
            threshold: format!("{} by others than {publisher}", self.approvals),
        }
    }
}

impl MetricGate {
    fn validate(&self) -> Result<(), Invalid> {
        let field = |what: &str| format!("gates.metrics.{}.{what}", self.metric);
        if self.metric.is_empty() || self.metric.len() > MAX_METRIC_BYTES {
            let problem = format!("{:?} is no name of 1 to {MAX_METRIC_BYTES} bytes", self.metric);
            return Err(Invalid::new("gates.metrics.metric", problem));
        }
        let bounds = [
            ("at_least", self.at_least),
            ("at_most", self.at_most),
            ("max_drop", self.max_drop),
            ("max_rise", self.max_rise),
        ];
        let mut any = false;
        for (what, bound) in bounds {
            let Some(bound) = bound else { continue };
            any = true;
            if !bound.is_finite() {
                return Err(Invalid::new(field(what), format!("{bound} is no finite number")));
            }
            if what.starts_with("max_") && bound < 0.0 {
                return Err(Invalid::new(field(what), format!("{bound} is negative; give 0 or more")));
            }
        }
        if !any {
            return Err(Invalid::new(field("at_least"), "no bound is given; give at least one"));
        }
        Ok(())
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Vec<Gate> {
        let found = candidate.metrics.get(&self.metric).copied();
        let present = candidate.present_metrics.as_ref().and_then(|metrics| metrics.get(&self.metric)).copied();
        let figure = found.map_or_else(|| "not in the manifest".into(), number);
        let gate = |kind: &'static str, passed: bool, threshold: String| Gate {
            kind,
            subject: self.metric.clone(),
            passed,
            figure: figure.clone(),
            threshold,
        };
        let mut judged = Vec::new();
        if let Some(bound) = self.at_least {
            let passed = found.is_some_and(|found| found >= bound);
            judged.push(gate("metric.at_least", passed, format!("at least {}", number(bound))));
        }
        if let Some(bound) = self.at_most {
            let passed = found.is_some_and(|found| found <= bound);
            judged.push(gate("metric.at_most", passed, format!("at most {}", number(bound))));
        }
        for (kind, tolerance, sign, word) in
            [("metric.max_drop", self.max_drop, 1.0, "below"), ("metric.max_rise", self.max_rise, -1.0, "above")]
        {
            let Some(tolerance) = tolerance else { continue };
            let (passed, than) = match (found, present) {
                (None, _) => (false, "the present version's".to_owned()),
                (Some(_), None) => (true, "the present version's, which is not known".to_owned()),
                // The slack forgives the last bit of decimal figures: 0.79 is not below 0.8 by more than 0.01.
                (Some(found), Some(present)) => {
                    (sign * (present - found) <= tolerance + 1e-12, format!("the present {}", number(present)))
                }
            };
            judged.push(gate(kind, passed, format!("not {word} {than} by more than {}", number(tolerance))));
        }
        judged
    }
}

/// As a person writes it: no more than six places.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(value: f64) -> BTreeMap<String, f64> {
        BTreeMap::from([("exact_match".to_owned(), value)])
    }

    fn gates(at_least: Option<f64>, max_drop: Option<f64>) -> Gates {
        let gate = MetricGate { metric: "exact_match".into(), at_least, max_drop, ..MetricGate::default() };
        Gates { metrics: vec![gate], ..Gates::default() }
    }

    fn passed(gates: &Gates, candidate: &Candidate<'_>) -> bool {
        gates.judge(candidate).iter().all(|gate| gate.passed)
    }

    #[test]
    fn a_figure_at_its_bound_passes_and_one_below_does_not() {
        let candidate = |value| Candidate { metrics: metrics(value), ..Candidate::default() };
        assert!(passed(&gates(Some(0.8), None), &candidate(0.8)));
        assert!(!passed(&gates(Some(0.8), None), &candidate(0.799_999)));
        assert!(!passed(&gates(Some(0.8), None), &Candidate::default()), "a figure that is missing does not pass");
    }

    #[test]
    fn a_drop_is_measured_from_the_present_version() {
        let candidate = |value, present: Option<f64>| Candidate {
            metrics: metrics(value),
            present_metrics: present.map(metrics),
            ..Candidate::default()
        };
        let demanded = gates(None, Some(0.01));
        assert!(passed(&demanded, &candidate(0.79, Some(0.8))), "exactly the tolerance, though not in binary");
        assert!(!passed(&demanded, &candidate(0.78, Some(0.8))));
        assert!(passed(&demanded, &candidate(0.9, Some(0.8))), "better is never a drop");
        assert!(passed(&demanded, &candidate(0.1, None)), "the first version drops from nothing");
        let judged = demanded.judge(&candidate(0.78, Some(0.8)));
        assert_eq!(
            judged[0].to_string(),
            "exact_match is 0.78 (not below the present 0.8 by more than 0.01 demanded): not passed"
        );
    }

    #[test]
    fn every_gate_is_listed_whether_it_passes_or_not() {
        let all = Gates {
            signature: true,
            approvals: 2,
            same_base: true,
            serving: BTreeSet::from([Server::Vllm, Server::Tailor]),
            ..gates(Some(0.8), Some(0.01))
        };
        let candidate = Candidate {
            metrics: metrics(0.9),
            approved_by: BTreeSet::from(["ann".to_owned()]),
            base_fingerprint: "sha256:a",
            present_base_fingerprint: Some("sha256:b"),
            obstacles: BTreeMap::from([(Server::Vllm, vec!["it is DoRA".to_owned()])]),
            ..Candidate::default()
        };
        let judged = all.judge(&candidate);
        let verdicts: Vec<_> = judged.iter().map(|gate| (gate.kind, gate.subject.as_str(), gate.passed)).collect();
        let wanted = [
            ("metric.at_least", "exact_match", true),
            ("metric.max_drop", "exact_match", true),
            ("signature", "", false),
            ("approvals", "", false),
            ("same_base", "", false),
            ("serving", "tailor", true),
            ("serving", "vllm", false),
        ];
        assert_eq!(verdicts, wanted);
        assert_eq!(judged[3].figure, "1 by ann");
        assert!(Gates::default().judge(&candidate).is_empty(), "no policy demands nothing");
    }

    #[test]
    fn bounds_that_cannot_be_meant_are_refused_by_name() {
        let refused = |gates: Gates| gates.validate().expect_err("refused").to_string();
        assert!(refused(gates(Some(f64::NAN), None)).contains("gates.metrics.exact_match.at_least"));
        assert!(refused(gates(None, Some(-0.1))).contains("negative"));
        assert!(refused(gates(None, None)).contains("no bound"));
        assert!(refused(Gates { approvals: 99, ..Gates::default() }).contains("99 approvals"));
        assert!("tgi".parse::<Server>().expect_err("unknown").to_string().contains("neither tailor nor vllm"));
    }
}
