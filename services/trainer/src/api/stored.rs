//! The stored forms of our types: the proto3 JSON of their messages.

/// Gives a type the JSON of the message that it converts to and from.
macro_rules! stored_as {
    ($type:ty, $message:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&<$message>::from(self), serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> std::result::Result<Self, D::Error> {
                let message = <$message as serde::Deserialize>::deserialize(deserializer)?;
                <$type>::try_from(message).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use stored_as;
