//! What a search chooses from.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Configurations: of one kind, or of several that have other settings each.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    kinds: Vec<Kind>,
}

/// Settings that stay, and those that are chosen.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    fixed: Map<String, Value>,
    dimensions: Vec<Dimension>,
}

/// A setting, or whether a value is among those of a setting.
#[derive(Clone, Debug, PartialEq)]
struct Dimension {
    key: String,
    values: Vec<Value>,
    /// The value that may be in the list, which `values` says by false and true.
    member: Option<Value>,
}

/// One configuration of a space: which kind, and the place of each of its choices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// Of which kind.
    pub kind: usize,
    /// Of each choice, which of its values.
    pub places: Vec<usize>,
}

impl Space {
    /// Of a mapping of settings in which `choices` has a list of values for each setting that is chosen, and `subsets` a list of which
    /// any part may be; or of a list of such mappings.
    pub fn new(value: &Value) -> Result<Self> {
        let kinds = match value {
            Value::Array(kinds) if !kinds.is_empty() => kinds.iter().map(Kind::new).collect::<Result<Vec<_>>>()?,
            Value::Object(_) => vec![Kind::new(value)?],
            other => return Err(Error::config("space", other, "a mapping of settings, or a list of such")),
        };
        let space = Space { kinds };
        if space.size() == usize::MAX {
            return Err(Error::config("space", "too many points", format!("fewer than {}", usize::MAX)));
        }
        Ok(space)
    }

    /// How many points it has.
    pub fn size(&self) -> usize {
        self.kinds.iter().map(Kind::size).fold(0, usize::saturating_add)
    }

    /// The point of a number below [`size`](Self::size).
    ///
    /// # Panics
    /// If there is none.
    pub fn point(&self, mut number: usize) -> Point {
        for (kind, of) in self.kinds.iter().enumerate() {
            if number < of.size() {
                let place = |dimension: &Dimension| {
                    let place = number % dimension.values.len();
                    number /= dimension.values.len();
                    place
                };
                return Point { kind, places: of.dimensions.iter().map(place).collect() };
            }
            number -= of.size();
        }
        panic!("the space has no point of this number")
    }

    /// The number of a point.
    pub fn number(&self, point: &Point) -> usize {
        let before: usize = self.kinds[..point.kind].iter().map(Kind::size).sum();
        let places = self.kinds[point.kind].dimensions.iter().zip(&point.places).rev();
        before + places.fold(0, |number, (dimension, place)| number * dimension.values.len() + place)
    }

    /// The settings of a point.
    pub fn settings(&self, point: &Point) -> Map<String, Value> {
        let Kind { fixed, dimensions } = &self.kinds[point.kind];
        let mut settings = fixed.clone();
        for (dimension, place) in dimensions.iter().zip(&point.places) {
            match &dimension.member {
                None => {
                    settings.insert(dimension.key.clone(), dimension.values[*place].clone());
                }
                Some(member) => {
                    let list = settings.entry(dimension.key.clone()).or_insert_with(|| Value::Array(vec![]));
                    if let (Value::Array(list), 1) = (list, *place) {
                        list.push(member.clone());
                    }
                }
            }
        }
        settings
    }

    /// Of each kind, how many values each of its choices has.
    pub fn choices(&self) -> Vec<Vec<usize>> {
        let values = |kind: &Kind| kind.dimensions.iter().map(|dimension| dimension.values.len()).collect();
        self.kinds.iter().map(values).collect()
    }

    /// The points that differ from one in a single choice.
    pub fn neighbours(&self, point: &Point) -> Vec<Point> {
        let choices = self.kinds[point.kind].dimensions.iter().enumerate();
        let others = |(i, dimension): (usize, &Dimension)| {
            let other = (0..dimension.values.len()).filter(|place| *place != point.places[i]);
            let moved = |place| {
                let mut other = point.clone();
                other.places[i] = place;
                other
            };
            other.map(moved).collect::<Vec<_>>()
        };
        choices.flat_map(others).collect()
    }

    /// A point as numbers from 0 to 1: numbers by their place among the values, other values and kinds each by one of its own.
    pub fn features(&self, point: &Point) -> Vec<f64> {
        let mut features = vec![];
        for (kind, of) in self.kinds.iter().enumerate() {
            let here = kind == point.kind;
            if self.kinds.len() > 1 {
                features.push(f64::from(here));
            }
            for (i, dimension) in of.dimensions.iter().enumerate() {
                let (place, count) = (here.then(|| point.places[i]), dimension.values.len());
                if dimension.member.is_some() || dimension.values.iter().all(Value::is_number) {
                    features.push(place.unwrap_or_default() as f64 / count.saturating_sub(1).max(1) as f64);
                } else {
                    features.extend((0..count).map(|value| f64::from(place == Some(value))));
                }
            }
        }
        features
    }
}

impl Kind {
    fn new(value: &Value) -> Result<Self> {
        let Value::Object(settings) = value else {
            return Err(Error::config("space", value, "a mapping of settings"));
        };
        let (mut fixed, mut dimensions) = (settings.clone(), vec![]);
        for list in ["choices", "subsets"] {
            let chosen = match fixed.remove(list) {
                None => continue,
                Some(Value::Object(chosen)) => chosen,
                Some(other) => return Err(Error::config(list, other, "a mapping of settings to lists")),
            };
            for (key, values) in chosen {
                let twice = fixed.contains_key(&key) || dimensions.iter().any(|d: &Dimension| d.key == key);
                let values = match values {
                    Value::Array(values) if !values.is_empty() && !twice => values,
                    Value::Array(_) if twice => return Err(Error::config(key, "twice", "one choice, or a value")),
                    other => return Err(Error::config(key, other, "a list of values, one at least")),
                };
                if let Some(again) = (1..values.len()).find(|i| values[..*i].contains(&values[*i])) {
                    return Err(Error::config(key, format!("{} twice", values[again]), "each value once"));
                }
                let member = |value| Dimension {
                    key: key.clone(),
                    values: vec![false.into(), true.into()],
                    member: Some(value),
                };
                match list {
                    "choices" => dimensions.push(Dimension { key, values, member: None }),
                    _ => dimensions.extend(values.into_iter().map(member)),
                }
            }
        }
        Ok(Kind { fixed, dimensions })
    }

    fn size(&self) -> usize {
        self.dimensions.iter().map(|dimension| dimension.values.len()).fold(1, usize::saturating_mul)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn space() -> Space {
        let autopeft = json!({"method": "autopeft", "choices": {"serial": [0, 3, 12], "mode": ["a", "b"]}, "subsets": {"layers": [0, 1, 5]}});
        Space::new(&json!([autopeft, {"method": "bitfit"}, {"method": "lora", "choices": {"r": [1, 2, 4, 8]}}]))
            .unwrap()
    }

    #[test]
    fn points_and_their_numbers_are_one() {
        let space = space();
        assert_eq!(space.size(), 3 * 2 * 8 + 1 + 4);
        let points: Vec<Point> = (0..space.size()).map(|number| space.point(number)).collect();
        assert!(points.iter().enumerate().all(|(number, point)| space.number(point) == number));
        let settings: BTreeSet<String> = points.iter().map(|point| json!(space.settings(point)).to_string()).collect();
        let features: BTreeSet<String> = points.iter().map(|point| format!("{:?}", space.features(point))).collect();
        assert_eq!((settings.len(), features.len()), (space.size(), space.size()));
        let point = Point { kind: 0, places: vec![2, 1, 1, 0, 1] };
        let expected = json!({"method": "autopeft", "serial": 12, "mode": "b", "layers": [0, 5]});
        assert_eq!(Value::Object(space.settings(&point)), expected);
        assert_eq!(space.settings(&Point { kind: 0, places: vec![0; 5] })["layers"], json!([]));
    }

    #[test]
    fn a_neighbour_differs_in_one_choice() {
        let space = space();
        for number in 0..space.size() {
            let point = space.point(number);
            let neighbours = space.neighbours(&point);
            let expected: usize = space.choices()[point.kind].iter().map(|values| values - 1).sum();
            assert_eq!(neighbours.iter().collect::<BTreeSet<_>>().len(), expected);
            for other in neighbours {
                let differ = other.places.iter().zip(&point.places).filter(|(a, b)| a != b).count();
                assert_eq!((other.kind, differ), (point.kind, 1));
            }
        }
    }

    #[test]
    fn what_is_no_space_is_refused_by_name() {
        for (value, words) in [
            (json!(3), ["space", "3", "mapping"]),
            (json!([]), ["space", "[]", "list"]),
            (json!({"choices": [1]}), ["choices", "[1]", "mapping"]),
            (json!({"choices": {"r": 8}}), ["r", "8", "list"]),
            (json!({"choices": {"r": []}}), ["r", "[]", "one at least"]),
            (json!({"r": 8, "choices": {"r": [1]}}), ["r", "twice", "one choice"]),
            (json!({"subsets": {"r": (0..70).collect::<Vec<_>>()}}), ["space", "too many", "fewer"]),
            (json!({"choices": {"r": [4, 2, 4]}}), ["r", "4 twice", "once"]),
            (json!({"subsets": {"layers": [0, 1, 1]}}), ["layers", "1 twice", "once"]),
        ] {
            let message = Space::new(&value).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
