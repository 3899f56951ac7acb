//! The part of CEL that the rules of our schemas use, over YAML values.
//!
//! The API server evaluates the rules that stand in the CRDs; a gateway alone evaluates the same texts here, so a laptop and a cluster cannot disagree.
//! A test compares every verdict with an independent CEL implementation. Rules are ours, so depth and cost are bounded by the schema; transition rules
//! (`oldSelf`) have no meaning alone and are left out by the caller. As in CEL, an error in one operand of `&&` and `||` is absorbed by the other.

use regex::Regex;
use serde_yaml::Value;

use crate::units::{ByteSize, Duration};

/// An expression.
#[derive(Clone, Debug)]
pub(crate) enum Expr {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Self>),
    Name(String),
    Field(Box<Self>, String),
    Has(Box<Self>, String),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Compare(Comparison, Box<Self>, Box<Self>),
    If(Box<Self>, Box<Self>, Box<Self>),
    Call(String, Box<Self>),
    Method(Box<Self>, String, Vec<Self>),
    Matches(Box<Self>, Regex),
    Quantified(Quantifier, Box<Self>, String, Box<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantifier {
    All,
    Exists,
    ExistsOne,
}

/// What an expression is worth.
#[derive(Clone, Debug)]
enum Worth<'a> {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Node(&'a Value),
    List(Vec<Self>),
}

/// Why an expression has no worth: a field that is not there, or a type that does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoWorth(String);

type Outcome<'a> = Result<Worth<'a>, NoWorth>;
type Scope<'e, 'a> = Vec<(&'e str, Worth<'a>)>;

/// Whether `rule` holds for `value`; an expression without worth does not hold.
pub(crate) fn holds(rule: &Expr, value: &Value) -> bool {
    matches!(evaluate(rule, &mut vec![("self", wrap(value))]), Ok(Worth::Bool(true)))
}

fn wrap(value: &Value) -> Worth<'_> {
    match value {
        Value::Bool(b) => Worth::Bool(*b),
        Value::Number(n) => n.as_i64().map_or_else(|| Worth::Float(n.as_f64().unwrap_or(f64::NAN)), Worth::Int),
        Value::String(text) => Worth::Text(text),
        other => Worth::Node(other),
    }
}

fn no_worth<T>(why: impl Into<String>) -> Result<T, NoWorth> {
    Err(NoWorth(why.into()))
}

fn truth<'e, 'a>(expr: &'e Expr, scope: &mut Scope<'e, 'a>) -> Result<bool, NoWorth>
where
    'e: 'a,
{
    match evaluate(expr, scope)? {
        Worth::Bool(b) => Ok(b),
        other => no_worth(format!("{other:?} is no boolean")),
    }
}

fn evaluate<'e, 'a>(expr: &'e Expr, scope: &mut Scope<'e, 'a>) -> Outcome<'a>
where
    'e: 'a,
{
    Ok(match expr {
        Expr::Bool(b) => Worth::Bool(*b),
        Expr::Int(n) => Worth::Int(*n),
        Expr::Text(text) => Worth::Text(text),
        Expr::List(items) => Worth::List(items.iter().map(|item| evaluate(item, scope)).collect::<Result<_, _>>()?),
        Expr::Name(name) => match scope.iter().rev().find(|(known, _)| known == name) {
            Some((_, worth)) => worth.clone(),
            None => return no_worth(format!("{name} is not known")),
        },
        Expr::Field(of, name) => match field(&evaluate(of, scope)?, name) {
            Some(value) => wrap(value),
            None => return no_worth(format!("there is no {name}")),
        },
        Expr::Has(of, name) => Worth::Bool(field(&evaluate(of, scope)?, name).is_some()),
        Expr::Not(of) => Worth::Bool(!truth(of, scope)?),
        Expr::And(a, b) => Worth::Bool(either(a, b, false, scope)?),
        Expr::Or(a, b) => Worth::Bool(either(a, b, true, scope)?),
        Expr::Compare(how, a, b) => Worth::Bool(compare(*how, &evaluate(a, scope)?, &evaluate(b, scope)?)?),
        Expr::If(condition, yes, no) => return if truth(condition, scope)? { evaluate(yes, scope) } else { evaluate(no, scope) },
        Expr::Call(name, of) => call(name, &evaluate(of, scope)?)?,
        Expr::Method(of, name, arguments) => {
            let of = evaluate(of, scope)?;
            let arguments = arguments.iter().map(|argument| evaluate(argument, scope)).collect::<Result<Vec<_>, _>>()?;
            method(&of, name, &arguments)?
        }
        Expr::Matches(of, pattern) => Worth::Bool(pattern.is_match(text_of(&evaluate(of, scope)?)?)),
        Expr::Quantified(how, of, name, body) => Worth::Bool(quantified(*how, evaluate(of, scope)?, name, body, scope)?),
    })
}

/// `&&` (decisive: false) and `||` (decisive: true): the decisive side wins even over an error of the other.
fn either<'e, 'a>(a: &'e Expr, b: &'e Expr, decisive: bool, scope: &mut Scope<'e, 'a>) -> Result<bool, NoWorth>
where
    'e: 'a,
{
    match truth(a, scope) {
        Ok(value) if value == decisive => Ok(decisive),
        Ok(_) => truth(b, scope),
        Err(error) => match truth(b, scope) {
            Ok(value) if value == decisive => Ok(decisive),
            _ => Err(error),
        },
    }
}

fn field<'a>(of: &Worth<'a>, name: &str) -> Option<&'a Value> {
    match of {
        Worth::Node(value) => value.get(name),
        _ => None,
    }
}

fn text_of<'a>(worth: &Worth<'a>) -> Result<&'a str, NoWorth> {
    match worth {
        Worth::Text(text) => Ok(text),
        other => no_worth(format!("{other:?} is no text")),
    }
}

fn items<'a>(worth: Worth<'a>) -> Result<Vec<Worth<'a>>, NoWorth> {
    match worth {
        Worth::List(items) => Ok(items),
        Worth::Node(Value::Sequence(items)) => Ok(items.iter().map(wrap).collect()),
        other => no_worth(format!("{other:?} is no list")),
    }
}

fn quantified<'e, 'a>(how: Quantifier, of: Worth<'a>, name: &'e str, body: &'e Expr, scope: &mut Scope<'e, 'a>) -> Result<bool, NoWorth>
where
    'e: 'a,
{
    let all = items(of)?;
    let number = all.len();
    let mut true_ones = 0;
    for item in all {
        scope.push((name, item));
        let outcome = truth(body, scope);
        scope.pop();
        true_ones += usize::from(outcome?);
    }
    Ok(match how {
        Quantifier::All => true_ones == number,
        Quantifier::Exists => true_ones > 0,
        Quantifier::ExistsOne => true_ones == 1,
    })
}

fn compare(how: Comparison, a: &Worth<'_>, b: &Worth<'_>) -> Result<bool, NoWorth> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    if how == Comparison::In {
        return Ok(items(b.clone())?.iter().any(|item| equal(a, item)));
    }
    if how == Comparison::Equal || how == Comparison::NotEqual {
        return Ok(equal(a, b) == (how == Comparison::Equal));
    }
    let order = match (a, b) {
        (Worth::Int(a), Worth::Int(b)) => Some(a.cmp(b)),
        (Worth::Float(a), Worth::Float(b)) => a.partial_cmp(b),
        (Worth::Text(a), Worth::Text(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let Some(order) = order else { return no_worth(format!("{a:?} and {b:?} cannot be compared")) };
    Ok(match how {
        Comparison::Less => order == Less,
        Comparison::LessOrEqual => order != Greater,
        Comparison::Greater => order == Greater,
        _ => matches!(order, Greater | Equal),
    })
}

fn equal(a: &Worth<'_>, b: &Worth<'_>) -> bool {
    match (a, b) {
        (Worth::Bool(a), Worth::Bool(b)) => a == b,
        (Worth::Int(a), Worth::Int(b)) => a == b,
        (Worth::Float(a), Worth::Float(b)) => a == b,
        (Worth::Text(a), Worth::Text(b)) => a == b,
        (Worth::Node(a), Worth::Node(b)) => a == b,
        _ => false,
    }
}

fn call<'a>(name: &str, of: &Worth<'a>) -> Outcome<'a> {
    Ok(match name {
        "size" => size(of)?,
        "isIP" => Worth::Bool(text_of(of)?.parse::<std::net::IpAddr>().is_ok()),
        "isCIDR" => Worth::Bool(text_of(of)?.parse::<ipnet::IpNet>().is_ok()),
        "duration" => match text_of(of)?.parse::<Duration>() {
            Ok(duration) => Worth::Int(i64::try_from(duration.std().as_millis()).unwrap_or(i64::MAX)),
            Err(why) => return no_worth(why),
        },
        "quantity" => match text_of(of)?.parse::<ByteSize>() {
            Ok(bytes) => Worth::Int(i64::try_from(bytes.0).unwrap_or(i64::MAX)),
            Err(why) => return no_worth(why),
        },
        "double" => match text_of(of)?.parse::<f64>() {
            Ok(number) => Worth::Float(number),
            Err(why) => return no_worth(why.to_string()),
        },
        _ => return no_worth(format!("there is no function {name}")),
    })
}

fn size<'a>(of: &Worth<'_>) -> Outcome<'a> {
    let size = match of {
        Worth::Text(text) => text.chars().count(),
        Worth::Node(Value::Mapping(map)) => map.len(),
        other => items(other.clone())?.len(),
    };
    Ok(Worth::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

fn method<'a>(of: &Worth<'a>, name: &str, arguments: &[Worth<'a>]) -> Outcome<'a> {
    Ok(match (name, arguments) {
        ("size", []) => size(of)?,
        ("contains", [part]) => Worth::Bool(text_of(of)?.contains(text_of(part)?)),
        ("startsWith", [start]) => Worth::Bool(text_of(of)?.starts_with(text_of(start)?)),
        ("endsWith", [end]) => Worth::Bool(text_of(of)?.ends_with(text_of(end)?)),
        ("compareTo", [Worth::Int(other)]) => match of {
            Worth::Int(this) => Worth::Int(this.cmp(other) as i64),
            _ => return no_worth("only quantities have compareTo"),
        },
        _ => return no_worth(format!("there is no method {name} with {} arguments", arguments.len())),
    })
}

/// Reads a rule.
///
/// # Errors
/// Names what it does not know; a test holds that every rule of our schemas reads.
pub(crate) fn parse(text: &str) -> Result<Expr, String> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let expr = parser.conditional()?;
    if parser.at < parser.tokens.len() {
        return Err(format!("'{text}': {:?} is left over", parser.tokens.get(parser.at)));
    }
    Ok(expr)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Int(i64),
    Text(String),
    Sign(&'static str),
}

const SIGNS: [&str; 20] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "?", ":", "(", ")", "[", "]", ",", ".", "-", "+", "%"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = vec![];
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let word_len = |more: fn(char) -> bool| rest.find(|c: char| !more(c)).unwrap_or(rest.len());
        let len = if first.is_ascii_alphabetic() || first == '_' {
            let len = word_len(|c| c.is_ascii_alphanumeric() || c == '_');
            found.push(Token::Name(rest.split_at(len).0.to_owned()));
            len
        } else if first.is_ascii_digit() {
            let len = word_len(|c| c.is_ascii_digit());
            found.push(Token::Int(rest.split_at(len).0.parse().map_err(|_| format!("'{rest}' begins with too large a number"))?));
            len
        } else if first == '\'' {
            let inner = rest.split_at(1).1;
            let end = inner.find('\'').ok_or_else(|| format!("{rest} is not closed"))?;
            let inner = inner.split_at(end).0;
            if inner.contains('\\') {
                return Err(format!("{rest}: escapes are not read, write [.] for a dot"));
            }
            found.push(Token::Text(inner.to_owned()));
            end + 2
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign)).ok_or_else(|| format!("'{rest}' begins with an unknown sign"))?;
            found.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest.split_at(len).1.trim_start();
    }
    Ok(found)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(format!("'{sign}' is missing at {:?}", self.tokens.get(self.at))) }
    }

    fn conditional(&mut self) -> Result<Expr, String> {
        let condition = self.disjunction()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.conditional()?;
        self.expect(":")?;
        Ok(Expr::If(Box::new(condition), Box::new(yes), Box::new(self.conditional()?)))
    }

    fn disjunction(&mut self) -> Result<Expr, String> {
        let mut left = self.conjunction()?;
        while self.take("||") {
            left = Expr::Or(Box::new(left), Box::new(self.conjunction()?));
        }
        Ok(left)
    }

    fn conjunction(&mut self) -> Result<Expr, String> {
        let mut left = self.comparison()?;
        while self.take("&&") {
            left = Expr::And(Box::new(left), Box::new(self.comparison()?));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Expr, String> {
        const COMPARISONS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let left = self.unary()?;
        if self.tokens.get(self.at) == Some(&Token::Name("in".into())) {
            self.at += 1;
            return Ok(Expr::Compare(Comparison::In, Box::new(left), Box::new(self.unary()?)));
        }
        match COMPARISONS.into_iter().find(|(sign, _)| self.take(sign)) {
            Some((_, how)) => Ok(Expr::Compare(how, Box::new(left), Box::new(self.unary()?))),
            None => Ok(left),
        }
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.take("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        let mut expr = self.primary()?;
        while self.take(".") {
            let Some(Token::Name(name)) = self.tokens.get(self.at).cloned() else { return Err("a name is missing after '.'".into()) };
            self.at += 1;
            expr = if self.take("(") { self.method(expr, name)? } else { Expr::Field(Box::new(expr), name) };
        }
        Ok(expr)
    }

    fn method(&mut self, of: Expr, name: String) -> Result<Expr, String> {
        let mut arguments = vec![];
        while !self.take(")") {
            arguments.push(self.conditional()?);
            self.take(",");
        }
        let how = match name.as_str() {
            "all" => Quantifier::All,
            "exists" => Quantifier::Exists,
            "exists_one" => Quantifier::ExistsOne,
            "matches" => {
                let [Expr::Text(pattern)] = arguments.as_slice() else { return Err("matches wants one literal pattern".into()) };
                return Ok(Expr::Matches(Box::new(of), Regex::new(pattern).map_err(|error| error.to_string())?));
            }
            _ => return Ok(Expr::Method(Box::new(of), name, arguments)),
        };
        match (arguments.pop(), arguments.pop()) {
            (Some(body), Some(Expr::Name(variable))) => Ok(Expr::Quantified(how, Box::new(of), variable, Box::new(body))),
            _ => Err(format!("{name} wants a variable and an expression")),
        }
    }

    fn primary(&mut self) -> Result<Expr, String> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Int(number)) => Ok(Expr::Int(number)),
            Some(Token::Text(text)) => Ok(Expr::Text(text)),
            Some(Token::Name(name)) if name == "true" || name == "false" => Ok(Expr::Bool(name == "true")),
            Some(Token::Name(name)) if self.take("(") => {
                let argument = self.conditional()?;
                self.expect(")")?;
                match (name.as_str(), argument) {
                    ("has", Expr::Field(of, field)) => Ok(Expr::Has(of, field)),
                    ("has", other) => Err(format!("has wants a field, not {other:?}")),
                    (_, argument) => Ok(Expr::Call(name, Box::new(argument))),
                }
            }
            Some(Token::Name(name)) => Ok(Expr::Name(name)),
            Some(Token::Sign("(")) => {
                let expr = self.conditional()?;
                self.expect(")")?;
                Ok(expr)
            }
            Some(Token::Sign("[")) => {
                let mut items = vec![];
                while !self.take("]") {
                    items.push(self.conditional()?);
                    self.take(",");
                }
                Ok(Expr::List(items))
            }
            other => Err(format!("{other:?} begins no expression")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &str, value: &str, expected: bool) {
        let value: Value = serde_yaml::from_str(value).expect("YAML");
        assert_eq!(holds(&parse(rule).expect(rule), &value), expected, "{rule} over {value:?}");
    }

    #[test]
    fn operators_bind_as_in_cel() {
        check("true || false && false", "{}", true);
        check("!has(self.a) || self.a == 'x' ? true : false", "{a: x}", true);
        check("self.a in ['x', 'y']", "{a: y}", true);
        check("(has(self.a) ? self.a : 5) <= 4", "{}", false);
        check("(has(self.a) ? self.a : 5) <= 4", "{a: 3}", true);
    }

    #[test]
    fn an_error_is_absorbed_by_the_deciding_side() {
        check("self.missing == 1 || true", "{}", true);
        check("self.missing == 1 && false", "{}", false);
        check("!(self.missing == 1 && false)", "{}", true);
        check("self.missing == 1", "{}", false);
        check("self.missing != 1", "{}", false);
    }

    #[test]
    fn functions_and_quantifiers() {
        check("self.all(a, self.exists_one(b, b.port == a.port))", "[{port: 1}, {port: 2}]", true);
        check("self.all(a, self.exists_one(b, b.port == a.port))", "[{port: 1}, {port: 1}]", false);
        check("duration(self) >= duration('1m')", "90s", true);
        check("quantity(self).compareTo(quantity('64Ki')) >= 0", "64Ki", true);
        check("quantity(self).compareTo(quantity('64Ki')) >= 0", "63Ki", false);
        check("isCIDR(self)", "10.0.0.0/33", false);
        check("self.matches('^[a-z]+$')", "abc", true);
        check("double(self.a) <= double(self.b)", "{a: '9', b: '10'}", true);
    }

    #[test]
    fn nonsense_is_refused() {
        for rule in ["", "self.", "has(self)", "self.a ==", "'open", "self.all(x)", "a b", "self @ 1", "self.matches(self)"] {
            parse(rule).expect_err(rule);
        }
    }
}
