//! The areas of MMLU's subjects.

use std::fmt;

/// The four areas that MMLU's subjects belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Natural sciences, computer science, mathematics and engineering.
    Stem,
    /// History, philosophy and law.
    Humanities,
    /// Politics, culture, economics, geography and psychology.
    SocialSciences,
    /// Business, health and all else.
    Other,
}

impl Area {
    /// All areas, in the order of MMLU's table.
    pub const ALL: [Area; 4] = [Area::Humanities, Area::SocialSciences, Area::Stem, Area::Other];

    /// The area of one of MMLU's 57 subjects; none for any other.
    pub fn of(subject: &str) -> Option<Self> {
        Area::ALL.into_iter().find(|area| area.subjects().contains(&subject))
    }

    fn subjects(self) -> &'static [&'static str] {
        match self {
            Area::Stem => &[
                "abstract_algebra",
                "astronomy",
                "college_biology",
                "college_chemistry",
                "college_computer_science",
                "college_mathematics",
                "college_physics",
                "computer_security",
                "conceptual_physics",
                "electrical_engineering",
                "elementary_mathematics",
                "high_school_biology",
                "high_school_chemistry",
                "high_school_computer_science",
                "high_school_mathematics",
                "high_school_physics",
                "high_school_statistics",
                "machine_learning",
            ],
            Area::Humanities => &[
                "formal_logic",
                "high_school_european_history",
                "high_school_us_history",
                "high_school_world_history",
                "international_law",
                "jurisprudence",
                "logical_fallacies",
                "moral_disputes",
                "moral_scenarios",
                "philosophy",
                "prehistory",
                "professional_law",
                "world_religions",
            ],
            Area::SocialSciences => &[
                "econometrics",
                "high_school_geography",
                "high_school_government_and_politics",
                "high_school_macroeconomics",
                "high_school_microeconomics",
                "high_school_psychology",
                "human_sexuality",
                "professional_psychology",
                "public_relations",
                "security_studies",
                "sociology",
                "us_foreign_policy",
            ],
            Area::Other => &[
                "anatomy",
                "business_ethics",
                "clinical_knowledge",
                "college_medicine",
                "global_facts",
                "human_aging",
                "management",
                "marketing",
                "medical_genetics",
                "miscellaneous",
                "nutrition",
                "professional_accounting",
                "professional_medicine",
                "virology",
            ],
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Area::Stem => "STEM",
            Area::Humanities => "humanities",
            Area::SocialSciences => "social sciences",
            Area::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_one_area() {
        let mut all: Vec<&str> = Area::ALL.into_iter().flat_map(Area::subjects).copied().collect();
        assert_eq!(Area::ALL.map(|area| area.subjects().len()), [13, 12, 18, 14]);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 57);
        assert_eq!((Area::of("virology"), Area::of("beasts")), (Some(Area::Other), None));
    }
}
