package meshdir

import (
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// checkTelemetry follows the rules of Istio's validation of the kind.
func checkTelemetry(c *checker) {
	t := c.object.spec.(*telemetry.Telemetry)
	c.withoutEffect(len(t.AccessLogging)+len(t.Tracing)+len(t.Metrics) > 0, "spec")
	c.policyTarget(t.Selector, t.TargetRef, t.TargetRefs)
	for i, l := range t.AccessLogging {
		c.telemetryProviders(index("spec.accessLogging", i), l.Providers)
	}
	if len(t.Tracing) > 1 {
		c.warnf("spec.tracing", "of several elements only the first counts")
	}
	for i, l := range t.Tracing {
		at := index("spec.tracing", i)
		c.telemetryProviders(at, l.Providers)
		if len(l.Providers) > 1 {
			c.warnf(at+".providers", "of several providers only the first counts")
		}
		c.percent(at+".randomSamplingPercentage", l.RandomSamplingPercentage.GetValue())
		c.customTags(at+".customTags", l.CustomTags)
	}
	for i, l := range t.Metrics {
		at := index("spec.metrics", i)
		c.telemetryProviders(at, l.Providers)
		c.duration(at+".reportingInterval", l.ReportingInterval)
		for j, o := range l.Overrides {
			c.tagOverrides(index(at+".overrides", j), o)
		}
	}
}

func (c *checker) customTags(at string, tags map[string]*telemetry.Tracing_CustomTag) {
	for name, tag := range tags {
		place := at + "[" + name + "]"
		if name == "" {
			c.errorf(at, "a tag has no name")
		}
		for field, missing := range map[string]bool{
			".literal.value": tag.GetLiteral() != nil && tag.GetLiteral().GetValue() == "", ".header.name": tag.GetHeader() != nil && tag.GetHeader().GetName() == "",
			".environment.name": tag.GetEnvironment() != nil && tag.GetEnvironment().GetName() == "", ".formatter.value": tag.GetFormatter() != nil && tag.GetFormatter().GetValue() == "",
		} {
			if missing {
				c.errorf(place+field, "is missing")
			}
		}
	}
}

func (c *checker) telemetryProviders(at string, providers []*telemetry.ProviderRef) {
	for i, p := range providers {
		if p.Name == "" {
			c.errorf(index(at+".providers", i)+".name", "a name is missing: name one of extensionProviders in mesh.yaml")
		}
	}
}

func (c *checker) tagOverrides(at string, o *telemetry.MetricsOverrides) {
	for name, tag := range o.TagOverrides {
		if name == "" {
			c.warnf(at+".tagOverrides", "a tag has no name")
		}
		place := at + ".tagOverrides[" + name + "]"
		switch upsert := tag.Operation == telemetry.MetricsOverrides_TagOverride_UPSERT; {
		case upsert && tag.Value == "":
			c.errorf(place+".value", "a value is missing")
		case !upsert && tag.Value != "":
			c.errorf(place+".value", "a tag that is removed has no value")
		}
	}
}
