package security

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// quotaKept begins the names in the filter state of values by which limits tell requests
// apart. There is none of what a request does not have.
const quotaKept = "writ.quota.per."

// What a template's expression has for its segments. All of them are of ASCII, as paths
// are on the wire: Envoy takes small expressions only, see maxProgram, and characters
// beyond are large.
const (
	anySegment = "[!-.0-~]+"
	// namedSegment leaves out what follows a ";", which servers take for parameters of
	// the segment: /users/1;a=b is /users/1 to them.
	namedSegment = "([!-.0-:<-~]+)[!-.0-~]*"
	anySegments  = "[!-~]*"
	// oneSpelling is what named segments may hold: the characters that stand in paths as
	// they are, and escapes of those beyond ASCII with large letters. All else has
	// several spellings, with which whoever asks could have as many counters.
	oneSpelling = `^(?:[!$&-:=@-Z_a-z~]|%[89A-F][0-9A-F])+$`
)

// kept says that a dimension's value is put into the filter state before anything asks
// for it: what needs more than one expression, and what a route may change before the
// request is over, if ratelimit is told of it then.
func (l *quotaLimit) kept(d model.Dimension) bool {
	return d.Template() != "" || requestValue(d) != "" && (l.Cost != nil || l.Algorithm == configpb.QuotaConcurrency)
}

// keptValue is an expression for what is in the filter state of a dimension.
func keptValue(d model.Dimension) string {
	key := celString(quotaKept + d.Text)
	return key + " in filter_state ? filter_state[" + key + "] : '" + quotaNoValue + "'"
}

// keptValues are what these limits ask for in the filter state, each once.
func (c *Compiler) keptValues(limits []quotaLimit, service string) []*setcommonv3.FilterStateValue {
	var out []*setcommonv3.FilterStateValue
	var texts []string
	for _, l := range limits {
		for _, d := range l.Per {
			if !l.kept(d) || slices.Contains(texts, d.Text) || d.Kind == "destination.service" && service != "" {
				continue
			}
			texts = append(texts, d.Text)
			value := requestValue(d)
			if d.Template() != "" {
				value = templateText(d)
			}
			out = append(out, keep(quotaKept+d.Text, value))
		}
	}
	return out
}

// templateText is an expression for the value of a template, which fails or is empty if
// the path does not fit. What is in the filter state is bytes to expressions, which can
// compare them with nothing: so all is looked at here.
func templateText(d model.Dimension) string {
	const path = "request.url_path"
	short := path + ".size() <= " + strconv.Itoa(model.MaxTemplatePath)
	template := celString(templateExpression(d.Template()))
	names := len(d.TemplateNames())
	if names == 0 {
		return short + " && " + path + ".matches(" + template + ") ? " + celString(d.Template()) + " : ''"
	}
	groups := `\1`
	for i := 2; i <= names; i++ {
		groups += `/\` + strconv.Itoa(i)
	}
	segments := "re.extract(" + path + ", " + template + ", " + celString(groups) + ")"
	return short + " && " + segments + ".matches(" + celString(oneSpelling) + ") ? " + segments + " : ''"
}

// templateExpression is a template as an expression of RE2, with a group for each named
// segment.
func templateExpression(template string) string {
	var out []string
	for segment := range strings.SplitSeq(template, "/") {
		switch {
		case segment == "{*}":
			segment = anySegment
		case segment == "{**}":
			segment = anySegments
		case model.TemplateName(segment) != "":
			segment = namedSegment
		default:
			segment = regexp.QuoteMeta(segment)
		}
		out = append(out, segment)
	}
	return "^" + strings.Join(out, "/") + "$"
}

// keep puts what an expression comes to into the filter state, unless it fails or is
// empty.
func keep(key, expression string) *setcommonv3.FilterStateValue {
	return &setcommonv3.FilterStateValue{
		Key:         &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey:  "envoy.string",
		SkipIfEmpty: true,
		Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: formatted(expression)},
			}},
			OmitEmptyValues: true,
		}},
	}
}
