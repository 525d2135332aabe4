//! A configuration of two parts, the procedure's and the adapter's, whose fields stand side by side.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// Both as one object.
pub(crate) fn serialize<S: Serializer>(
    own: &impl Serialize,
    inner: &impl Serialize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Both<'a, A, B> {
        #[serde(flatten)]
        own: &'a A,
        #[serde(flatten)]
        inner: &'a B,
    }
    Both { own, inner }.serialize(serializer)
}

/// Both from one object. What is missing is as in `own` and `inner`; fields that neither has are for the second to refuse.
pub(crate) fn deserialize<'de, D, A, B>(deserializer: D, own: &A, inner: &B) -> Result<(A, B), D::Error>
where
    D: Deserializer<'de>,
    A: Serialize + DeserializeOwned,
    B: Serialize + DeserializeOwned,
{
    let (mut own, mut inner) = (object(own).map_err(D::Error::custom)?, object(inner).map_err(D::Error::custom)?);
    for (key, value) in Map::deserialize(deserializer)? {
        let part = if own.contains_key(&key) { &mut own } else { &mut inner };
        part.insert(key, value);
    }
    let own = serde_json::from_value(Value::Object(own)).map_err(D::Error::custom)?;
    Ok((own, serde_json::from_value(Value::Object(inner)).map_err(D::Error::custom)?))
}

fn object(part: &impl Serialize) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_value(serde_json::to_value(part)?)
}
