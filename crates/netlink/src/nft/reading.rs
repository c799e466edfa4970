//! Rules as the kernel lists them: expressions that load into registers, compare, and decide.

use super::listing::{Interface, RuleState, Verdict};
use crate::message::Attributes;

const INPUT_NAME: u32 = 6;
const OUTPUT_NAME: u32 = 7;
const CONNECTION_STATE: u32 = 0;
/// Connections that exist; the others are bits beside it.
const ESTABLISHED: u32 = 2;
const EQUAL: u32 = 0;

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Input,
    Output,
    State,
    Unknown,
}

/// Reads the list of a rule's expressions.
pub(super) fn rule(expressions: &Attributes<'_>) -> RuleState {
    let mut reader = Reader::default();
    for (_, expression) in expressions.clone() {
        let expression = Attributes::after(expression, 0);
        let name = expression.text(1).unwrap_or_default();
        reader.expression(&name, &expression.nested(2));
    }
    reader.rule
}

#[derive(Default)]
struct Reader {
    rule: RuleState,
    registers: Vec<(u32, Held)>,
}

impl Reader {
    fn expression(&mut self, name: &str, data: &Attributes<'_>) {
        match name {
            // What counts and writes decides nothing.
            "counter" | "log" | "notrack" | "objref" => {}
            "meta" => self.load(
                data.network(1),
                match data.network(2) {
                    Some(INPUT_NAME) => Held::Input,
                    Some(OUTPUT_NAME) => Held::Output,
                    _ => Held::Unknown,
                },
            ),
            "ct" => self.load(
                data.network(1),
                match data.network(2) {
                    Some(CONNECTION_STATE) => Held::State,
                    _ => Held::Unknown,
                },
            ),
            "bitwise" => {
                let held = self.held(data.network(1));
                if held == Held::State {
                    self.state(data.nested(4).find(1));
                }
                self.load(data.network(2), held);
            }
            "cmp" => self.compare(data),
            "lookup" => {
                match self.held(data.network(2)) {
                    Held::Input => self.rule.input = Interface::Else,
                    Held::Output => self.rule.output = Interface::Else,
                    Held::State => self.rule.answers = true,
                    Held::Unknown => self.rule.conditions = true,
                }
                if data.network(3) == Some(0) {
                    self.rule.verdict = Some(Verdict::Else);
                }
            }
            "immediate" => {
                if data.network(1) == Some(0) {
                    self.rule.verdict = verdict(&data.nested(2).nested(2));
                }
            }
            "reject" => self.rule.verdict = Some(Verdict::Drop),
            // Those of iptables.
            "match" => match data.text(1).as_deref() {
                Some("comment") => {}
                Some("conntrack" | "state") => self.rule.answers = true,
                _ => self.rule.conditions = true,
            },
            "target" => match data.text(1).as_deref() {
                Some("REJECT") => self.rule.verdict = Some(Verdict::Drop),
                Some("LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "TRACE" | "AUDIT") => {}
                _ => self.rule.verdict = Some(Verdict::Else),
            },
            "queue" => self.rule.verdict = Some(Verdict::Else),
            // Whatever it loads or asks: what comes after it is about that.
            _ => {
                self.registers.clear();
                self.rule.conditions = true;
            }
        }
    }

    /// Without a register something is set, and nothing asked for.
    fn load(&mut self, register: Option<u32>, held: Held) {
        if let Some(register) = register {
            self.registers.retain(|(r, _)| *r != register);
            self.registers.push((register, held));
        }
    }

    fn held(&self, register: Option<u32>) -> Held {
        let found = self.registers.iter().find(|(r, _)| Some(*r) == register);
        found.map_or(Held::Unknown, |(_, held)| *held)
    }

    fn compare(&mut self, data: &Attributes<'_>) {
        let value = data.nested(3).find(1);
        let equal = data.network(2) == Some(EQUAL);
        match self.held(data.network(1)) {
            Held::Input => self.rule.input = interface(equal, value),
            Held::Output => self.rule.output = interface(equal, value),
            // With a mask before it the mask has said it.
            Held::State if equal => self.state(value),
            Held::State => {}
            Held::Unknown => self.rule.conditions = true,
        }
    }

    /// Notes which states of a connection a rule is for.
    fn state(&mut self, bits: Option<&[u8]>) {
        let bits = bits.and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        match bits {
            Some(bits) if bits & ESTABLISHED != 0 => self.rule.answers = true,
            _ => self.rule.conditions = true,
        }
    }
}

/// A whole name ends with a NUL; one without is the beginning of names.
fn interface(equal: bool, value: Option<&[u8]>) -> Interface {
    let Some(value) = value.filter(|v| equal && !v.starts_with(&[0])) else {
        return Interface::Else;
    };
    let end = value.iter().position(|b| *b == 0);
    let text = String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned();
    match end {
        Some(_) => Interface::Is(text),
        None => Interface::Begins(text),
    }
}

fn verdict(data: &Attributes<'_>) -> Option<Verdict> {
    let to = || data.text(2).unwrap_or_default();
    match data.network(1)? as i32 {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -1 => None,
        -3 => Some(Verdict::Jump(to())),
        -4 => Some(Verdict::Goto(to())),
        -5 => Some(Verdict::Return),
        _ => Some(Verdict::Else),
    }
}
