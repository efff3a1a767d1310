package meshdir

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// templateDimension begins a dimension that tells requests apart by a template.
	templateDimension = "request.path["
	// maxTemplates bounds the different templates of a policy: Envoy looks at each for
	// each request.
	maxTemplates = 16
	// maxTemplateSize is how large a template may be for Envoy: so much for each kind of
	// segment that stands for others, and one for each character.
	maxTemplateSize  = 80
	namedSegmentSize = 16
	otherSegmentSize = 6
)

// segmentName is what a segment may be called in a template.
var segmentName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// parseTemplate reads request.path[TEMPLATE]; the second result says what is wrong.
func parseTemplate(text string) (model.Dimension, string) {
	template, closed := strings.CutSuffix(strings.TrimPrefix(text, templateDimension), "]")
	d := model.Dimension{Text: text, Kind: "request.path", Arg: template}
	problem := pathTemplateProblem(template)
	switch {
	case !closed:
		problem = "] is missing at the end"
	case problem == "":
		problem = templateSizeProblem(d)
	}
	if problem != "" {
		return model.Dimension{}, fmt.Sprintf("%q: %s", shorten(text), problem)
	}
	return d, ""
}

// pathTemplateProblem says what is wrong with a template, empty if nothing is.
func pathTemplateProblem(template string) string {
	if !strings.HasPrefix(template, "/") {
		return "a template is a path: write for example request.path[/users/{id}/orders]"
	}
	segments := strings.Split(template[1:], "/")
	var names []string
	rest := false
	for i, segment := range segments {
		name := model.TemplateName(segment)
		switch {
		case segment == "{*}" || segment == "{**}" || name != "":
			if rest {
				return "behind {**} no segment may stand for others"
			}
			rest = segment == "{**}"
			switch {
			case name == "":
			case !segmentName.MatchString(name):
				return fmt.Sprintf("%q is no name of a segment: write letters, digits and _", shorten(segment))
			case slices.Contains(names, name):
				return fmt.Sprintf("%q is given twice", shorten(segment))
			default:
				names = append(names, name)
			}
		case segment == "":
			if i != len(segments)-1 {
				return "a segment is empty: write one / between segments"
			}
		case strings.Contains(segment, "?"):
			return "the query is no part of the path: leave it out"
		case !pathSegment.MatchString(segment):
			return fmt.Sprintf("%q is neither plain text nor {name}, which tells requests apart, {*} or {**}, which do not", shorten(segment))
		}
	}
	return ""
}

// templateSizeProblem says whether a template is too large for Envoy.
func templateSizeProblem(d model.Dimension) string {
	size := 0
	for segment := range strings.SplitSeq(d.Arg[1:], "/") {
		switch {
		case model.TemplateName(segment) != "":
			size += namedSegmentSize
		case segment == "{*}" || segment == "{**}":
			size += otherSegmentSize
		default:
			size += len(segment)
		}
		size++
	}
	if size > maxTemplateSize {
		return fmt.Sprintf("is too large for Envoy: %d for each name, %d for each {*} and {**}, and one for each other character, come to %d of at most %d",
			namedSegmentSize, otherSegmentSize, size, maxTemplateSize)
	}
	return ""
}

// checkTemplates bounds the templates of a policy's limits.
func (c *checker) checkTemplates(s *quotaSpec) {
	var different []string
	for _, limit := range s.Limits {
		for _, text := range append(slices.Clone(limit.Per), limit.fairBy()) {
			if strings.HasPrefix(text, templateDimension) && !slices.Contains(different, text) {
				different = append(different, text)
			}
		}
	}
	if n := len(different); n > maxTemplates {
		c.errorf("spec.limits", "%d different templates of paths in per are too many: at most %d, each of which Envoy looks at for each request; write several policies with a match", n, maxTemplates)
	}
}
