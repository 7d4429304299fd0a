// Imports the regions that bcss_jax found into every image of the open project, to be looked at and corrected.
//
// QuPath 0.5 and 0.6: set `results` below to the folder that was given as --output, then Automate > Script editor, open
// this file, Run. Close the image that is open, or reload its data afterward (File > Reload data): the script changes
// what is stored in the project. The regions of a slide are in results/<slide>/regions.geojson. Annotations that you drew
// stay. An image that has regions of an earlier import is left as it is, because they may have been corrected; set
// `replace` to true to replace them.

import qupath.lib.common.GeneralTools
import qupath.lib.io.PathIO

def results = new File("/path/to/output")
def replace = false
def unlocked = true // regions are written locked, so that none is moved by mistake; false keeps them so
def mark = "bcss_jax" // name of the imported annotations, by which the next import finds them

def project = getProject()
if (project == null) {
    println "Open a project first."
    return
}
def images = project.getImageList()
def imported = 0
for (entry in images) {
    def uris = entry.getURIs()
    def name = uris.isEmpty() ? entry.getImageName() : new File(uris.iterator().next().getPath()).getName()
    def stem = GeneralTools.getNameWithoutExtension(name)
    def file = new File(new File(results, stem), "regions.geojson")
    if (!file.exists()) {
        println "${entry.getImageName()}: no ${file}"
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    def earlier = hierarchy.getAnnotationObjects().findAll { it.getName() == mark }
    if (!earlier.isEmpty() && !replace) {
        println "${entry.getImageName()}: NOT IMPORTED, it has ${earlier.size()} regions of an earlier import"
        imageData.getServer().close()
        continue
    }
    def regions = PathIO.readObjects(file.toPath())
    regions.each {
        it.setName(mark)
        if (unlocked)
            it.setLocked(false)
    }
    hierarchy.removeObjects(earlier, true) // keeps what was drawn within them
    hierarchy.addObjects(regions)
    entry.saveImageData(imageData)
    imageData.getServer().close()
    imported++
    println "${entry.getImageName()}: ${regions.size()} regions imported, ${earlier.size()} earlier ones replaced"
}
project.syncChanges()
println "${imported} of ${images.size()} images"
