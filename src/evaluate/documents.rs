//! The documents of a task in little memory: rows as the text that they came from, not as parsed JSON, which takes several
//! times as much. A document is put together when it is its turn.

use serde_json::Value;

use super::task::Document;

/// Documents in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Documents(Vec<Packed>);

/// A document without its row, and the row as JSON.
#[derive(Debug, Clone, PartialEq)]
struct Packed {
    document: Document,
    row: Box<str>,
}

impl Packed {
    fn unpacked(&self) -> Document {
        let row = serde_json::from_str(&self.row).expect("a value's own text is JSON");
        let Document { row: _, text, target, shot_answer, choices } = self.document.clone();
        Document { row, text, target, shot_answer, choices }
    }
}

impl Documents {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    pub fn get(&self, doc_id: usize) -> Option<Document> {
        self.0.get(doc_id).map(Packed::unpacked)
    }

    /// How many choices a document has.
    pub fn num_choices(&self, doc_id: usize) -> usize {
        self.0[doc_id].document.choices.len()
    }

    /// All of them, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Document> {
        self.0.iter().map(Packed::unpacked)
    }

    /// Keeps the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
        self.0.shrink_to_fit();
    }
}

impl From<Vec<Document>> for Documents {
    fn from(documents: Vec<Document>) -> Self {
        let pack = |mut document: Document| {
            let row = std::mem::replace(&mut document.row, Value::Null).to_string().into_boxed_str();
            document.choices.shrink_to_fit();
            Packed { document, row }
        };
        Self(documents.into_iter().map(pack).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evaluate::task::Target;

    #[test]
    fn documents_come_back_as_they_went_in() {
        let document = |row: Value| Document {
            row,
            text: "Q".into(),
            target: Target::Choice(1),
            shot_answer: "b".into(),
            choices: vec!["a".into(), "b".into()],
        };
        // The order of keys, numbers of all kinds, and text that JSON escapes.
        let rows = [json!({"z": 1, "a": [0.1, -3, 1e300], "t": "\u{2028}\"\n"}), json!(null), json!("x")];
        let all: Vec<Document> = rows.map(document).into();
        let packed = Documents::from(all.clone());
        assert_eq!(packed.iter().collect::<Vec<_>>(), all);
        assert_eq!(packed.get(0).map(|it| it.row.to_string()), Some(all[0].row.to_string()));
        assert_eq!((packed.len(), packed.num_choices(2), packed.get(3)), (3, 2, None));
    }
}
